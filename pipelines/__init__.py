"""Single-file pipelines for diffusers' `custom_pipeline=`; installed as `ddpm_hf.pipelines`."""
