# Read by `ucllm shell` in place of the user's .zshrc. That one is read first, so that nothing in it undoes the
# environment.
if [[ -n ${UCLLM_ZDOTDIR-} ]]; then ZDOTDIR=${UCLLM_ZDOTDIR}; else unset ZDOTDIR; fi
unset UCLLM_FILES UCLLM_ZDOTDIR
if [[ -r ${ZDOTDIR-${HOME}}/.zshrc ]]; then . "${ZDOTDIR-${HOME}}/.zshrc"; fi
eval "$(eval "${UCLLM_SHELL}")"
unset UCLLM_SHELL
PS1="(.venv) ${PS1-}"
