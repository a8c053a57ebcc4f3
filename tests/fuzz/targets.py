"""All targets, by name."""

from tests.fuzz import calls_targets, files_targets, pictures_targets, settings_targets

TARGETS = {
    **settings_targets.TARGETS,
    **calls_targets.TARGETS,
    **pictures_targets.TARGETS,
    **files_targets.TARGETS,
}
