"""What a publisher makes: the release folder, its card and manifest, the upload, and the check of anyone's files."""
