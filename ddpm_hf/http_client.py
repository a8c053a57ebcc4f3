"""The HTTP library with which huggingface_hub asks, and whose errors its calls raise."""

try:
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # httpx2 since its version 2
except ImportError:  # before 1.33
    import httpx  # type: ignore[import-not-found,no-redef]

__all__ = ["httpx"]
