"""The page: a photo or a clip in, CEST and IEST side by side. `app.py` serves it."""
