"""Forms of training samples: generated pairs, and real images in three forms."""

from __future__ import annotations

GENERATED = "generated"
LANDMARKS = "landmarks"
REGISTERED = "registered"
SELF = "self"
FORMS = (GENERATED, LANDMARKS, REGISTERED, SELF)
