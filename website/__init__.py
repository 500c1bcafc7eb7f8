"""What runs this website. Nothing here is copied."""
