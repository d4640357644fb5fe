"""The container images: what is in them, how they are built, how they are recognised."""
