"""An HTTP server of images, with the APIs of OpenAI and of A1111's web UI."""
