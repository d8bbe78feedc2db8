"""Generates text after a prefill, in little more time per token than it takes to read the weights once.

`choose` chooses tokens, `open_text` knows when a text ends, `slots` holds keys and values, `decode_step` is what
runs on the device for one token, `engine` runs the steps, and `generate` puts them together.
"""

from latentwire.lm.decoding.choose import Bans as Bans
from latentwire.lm.decoding.choose import Decoding as Decoding
from latentwire.lm.decoding.choose import Generated as Generated
from latentwire.lm.decoding.choose import suppressed as suppressed
from latentwire.lm.decoding.choose import without as without
from latentwire.lm.decoding.decoding_settings import DecodingSettings as DecodingSettings
from latentwire.lm.decoding.generate import generate as generate
from latentwire.lm.decoding.generate import generate_all as generate_all
