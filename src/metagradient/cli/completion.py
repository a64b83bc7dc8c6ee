"""`metagradient completion [bash|zsh|fish]`: a script that completes experiments, groups, options and settings."""

from collections.abc import Sequence

from metagradient.errors import UserError

_BASH = r"""# eval "$(metagradient completion)"
_metagradient() {
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "@NAMES@" -- "${COMP_WORDS[1]}"))
    elif [ "${COMP_WORDS[1]}" != compare ]; then
        local line="${COMP_LINE#*metagradient }"
        COMPREPLY=($(COMP_LINE="$line" COMP_POINT="${#line}" metagradient "${COMP_WORDS[1]}" -sc query=bash 2>/dev/null))
    fi
}
COMP_WORDBREAKS="${COMP_WORDBREAKS//[=:]/}"
complete -o nospace -o default -F _metagradient metagradient
"""
_ZSH = r"""# eval "$(metagradient completion zsh)"
_metagradient() {
    if [ "$CURRENT" -eq 2 ]; then
        compadd -- @NAMES@
    elif [ "${words[2]}" != compare ]; then
        local line="${(j: :)words[2,-1]}"
        compadd -S '' -- $(COMP_LINE="$line" COMP_POINT="${#line}" metagradient "${words[2]}" -sc query=bash 2>/dev/null)
    fi
}
whence compdef >/dev/null || { autoload -Uz compinit && compinit -u; }
compdef _metagradient metagradient
"""
_FISH = r"""# metagradient completion fish | source
function __metagradient
    set -l words (commandline -opc)
    if test (count $words) -eq 1
        printf '%s\n' @NAMES@
    else if test $words[2] != compare
        set -l line (string join ' ' -- $words[2..] (commandline -ct))
        COMP_LINE="$line" COMP_POINT=(string length -- "$line") metagradient $words[2] -sc query=bash 2>/dev/null | string split ' '
    end
end
complete -c metagradient -f -a '(__metagradient)'
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def script(experiments: Sequence[str], shell: str = "bash") -> str:
    """The script for a shell. Hydra's own would complete one program for one experiment, not one program with many.

    Raises:
        UserError: another shell.
    """
    if shell not in _SCRIPTS:
        raise UserError(f"completion is written for {', '.join(_SCRIPTS)}, not {shell!r}: metagradient completion bash")
    return _SCRIPTS[shell].replace("@NAMES@", " ".join([*experiments, "compare"]))
