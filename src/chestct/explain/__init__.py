"""Which voxels spoke for a class, and where they lie in the patient's own scan."""
