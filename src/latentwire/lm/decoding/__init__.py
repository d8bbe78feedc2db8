"""Generating text behind a prefill: near the time it takes to read the weights once a token.

`choose` says how a token is chosen, `text` when a text ends, `slots` where keys and values stand, `step` what
happens on the device for one token, `engine` how steps are run, and `generate` puts them together.
"""

from latentwire.lm.decoding.choose import Decoding as Decoding
from latentwire.lm.decoding.choose import Generated as Generated
from latentwire.lm.decoding.choose import suppressed as suppressed
from latentwire.lm.decoding.choose import without as without
from latentwire.lm.decoding.generate import generate as generate
from latentwire.lm.decoding.generate import generate_all as generate_all
