"""The HTTP service: `/asr`, OpenAI's transcriptions, a page. Needs the extra `server`."""
