# Read by `ucllm shell` in place of the user's .zshenv, which it reads; ZDOTDIR is theirs meanwhile.
UCLLM_FILES=${ZDOTDIR}
if [[ -n ${UCLLM_ZDOTDIR-} ]]; then ZDOTDIR=${UCLLM_ZDOTDIR}; else unset ZDOTDIR; fi
if [[ -r ${ZDOTDIR-${HOME}}/.zshenv ]]; then . "${ZDOTDIR-${HOME}}/.zshenv"; fi
UCLLM_ZDOTDIR=${ZDOTDIR-}
ZDOTDIR=${UCLLM_FILES}
