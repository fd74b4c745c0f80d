"""A server of pictures over HTTP, with the API that programs for OpenAI's images already speak."""
