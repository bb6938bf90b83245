"""The service: a trained model answers over HTTP, with a page to try it. Needs the extra `serve`."""
