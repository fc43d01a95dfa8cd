"""An HTTP server in the form of OpenAI's image API: `vargen serve`."""
