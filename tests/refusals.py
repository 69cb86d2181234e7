"""The shape of every refusal: one sentence that names, rules, shows and helps."""

from collections.abc import Callable
from typing import Any

import pytest

from halflife.errors import InputError


def refusal(call: Callable[[], Any]) -> str:
    """The one sentence that a call is refused with."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert " must " in message
    assert ", got " in message
    assert "; " in message
    assert len(message) < 900
    return message
