"""A virtual world and a virtual camera, to render clips whose camera motion is known: see `render`."""
