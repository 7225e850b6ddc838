"""click's own texts that a user of ucllm can meet, listed so that our catalogue translates them.

click looks its texts up with the standard library's ``gettext``, but ships no translations. :func:`bootstrap.cli.main`
points that lookup at our catalogue; extraction finds the texts here. Nothing imports this module.
"""

from __future__ import annotations

from gettext import ngettext

from pipeline.i18n import N_

TEXTS = (
    # Help.
    N_("Usage:"),
    N_("Options"),
    N_("Commands"),
    N_("Show this message and exit."),
    # Words on the command line that click refuses.
    N_("No such option {name!r}."),
    N_("Option {name!r} does not take a value."),
    N_("Missing command."),
    N_("Invalid value for {param_hint}: {message}"),
    N_("{value!r} is not a valid {number_type}."),
    N_("{name} {filename!r} is a file."),
    N_("{name} {filename!r} is not readable."),
    # The answer to a question.
    N_("Error: invalid input"),
)

#: What click asks for with a number. The choice made here is never shown.
COUNTED = (
    ngettext("Option {name!r} requires an argument.", "Option {name!r} requires {nargs} arguments.", 1),
    ngettext("Got unexpected extra argument ({args})", "Got unexpected extra arguments ({args})", 1),
)
