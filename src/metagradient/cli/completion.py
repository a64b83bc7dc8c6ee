"""`metagradient completion`: a script for bash or zsh that completes experiments, groups, options and settings."""

from collections.abc import Sequence

_SCRIPT = r"""# eval "$(metagradient completion)"; in zsh first: autoload -U +X bashcompinit && bashcompinit
_metagradient() {
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "WORDS" -- "${COMP_WORDS[1]}"))
    elif [ "${COMP_WORDS[1]}" != compare ]; then
        local line="${COMP_LINE#*metagradient }"
        COMPREPLY=($(COMP_LINE="$line" COMP_POINT="${#line}" metagradient "${COMP_WORDS[1]}" -sc query=bash 2>/dev/null))
    fi
}
COMP_WORDBREAKS="${COMP_WORDBREAKS//[=:]/}"
complete -o nospace -o default -F _metagradient metagradient
"""


def script(experiments: Sequence[str]) -> str:
    """The script. Hydra's own would complete one program for one experiment, not one program with many."""
    return _SCRIPT.replace("WORDS", " ".join([*experiments, "compare"]))
