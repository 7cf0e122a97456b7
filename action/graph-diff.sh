#!/usr/bin/env bash
# Compares fresh snapshots of models with the committed ones of a git revision, and says on the pull
# request what has changed. Exits with the worst of mixflowc's exit codes. Runs in the repository's
# root; action.yml sets the variables, docs/ci.md says what they mean. The functions share main's.
set -euo pipefail

readonly LONGEST_COMMENT=65536 # GitHub's limit in characters; counted in bytes here, never fewer

main() {
  local models snapshots base work code=0
  mapfile -t models < <(lines "$MIXFLOW_MODELS")
  mapfile -t snapshots < <(lines "$MIXFLOW_SNAPSHOT")
  ((${#models[@]})) || stop "models: give at least one MODEL.py"
  ((${#models[@]} == ${#snapshots[@]})) ||
    stop "models and snapshot: ${#models[@]} and ${#snapshots[@]} lines; give each model a snapshot"
  [[ $MIXFLOW_COMMENT =~ ^(true|false)$ ]] || stop "comment: $MIXFLOW_COMMENT is not true or false"
  find_base
  check_baselines
  work=$(mktemp -d)
  compare_all || code=$?
  cat "$work/report.md" >>"${GITHUB_STEP_SUMMARY:-/dev/stdout}"
  comment_on_pull_request
  rm -r "$work"
  exit "$code"
}

stop() {
  echo "graph-diff: error: $*" >&2
  exit 2
}

# The lines of a text that hold something.
lines() {
  sed -e 's/^[[:space:]]*//' -e 's/[[:space:]]*$//' -e '/^$/d' <<<"$1"
}

find_base() {
  base=$MIXFLOW_BASE
  if [[ -z $base ]]; then
    [[ -n ${GITHUB_BASE_REF:-} ]] || stop "base: this is no pull request; give a git revision"
    base=origin/$GITHUB_BASE_REF
    is_commit "$base" || fetch_branch "$GITHUB_BASE_REF"
  fi
  is_commit "$base" || stop "base: there is no git revision $base here; fetch it first"
}

is_commit() {
  git rev-parse --quiet --verify --end-of-options "$1^{commit}" >/dev/null
}

# A job's checkout holds one commit; the branch's last one is all that is needed.
fetch_branch() {
  git fetch --quiet --depth 1 origin "+refs/heads/$1:refs/remotes/origin/$1" ||
    stop "base: cannot fetch $1 from origin"
}

# Before the work, which takes a while.
check_baselines() {
  local i
  for i in "${!models[@]}"; do
    git cat-file -e "$base:${snapshots[i]}" 2>/dev/null ||
      stop "snapshot: $base has no ${snapshots[i]}; make it there with:" \
        "mixflowc snapshot ${models[i]} -o ${snapshots[i]}"
  done
}

# Writes report.md; returns the worst exit code.
compare_all() {
  local i code worst=0
  for i in "${!models[@]}"; do
    code=0
    rm -f "$work/one.md"
    compare "${models[i]}" "${snapshots[i]}" 2>"$work/errors" || code=$?
    cat "$work/errors" >&2
    [[ -e $work/one.md ]] || could_not_compare "${models[i]}" >"$work/one.md"
    cat "$work/one.md" >>"$work/report.md"
    worst=$((code > worst ? code : worst))
  done
  return "$worst"
}

# Writes one.md. The fresh snapshot takes the committed one's place, where a job can pick it up.
compare() {
  local checks=() pass
  [[ -z $MIXFLOW_MAX_MEMORY ]] || checks+=("--max-memory=$MIXFLOW_MAX_MEMORY")
  [[ -z $MIXFLOW_MAX_FLOPS ]] || checks+=("--max-flops=$MIXFLOW_MAX_FLOPS")
  [[ -z $MIXFLOW_MAX_EQNS ]] || checks+=("--max-eqns=$MIXFLOW_MAX_EQNS")
  while read -r pass; do checks+=("--require=$pass"); done < <(lines "$MIXFLOW_REQUIRE")
  mixflowc snapshot -o "$2" -- "$1" &&
    mixflowc diff --format markdown -o "$work/one.md" "${checks[@]}" -- "$base:$2" "$2"
}

could_not_compare() {
  printf '### %s: could not be compared\n\n' "$1"
  sed 's/^/    /' "$work/errors"
}

# One comment for each list of snapshots, found again by a mark that is not shown. A token that may
# not comment (a fork's has no right to) is no reason to hide what the diff found.
comment_on_pull_request() {
  [[ $MIXFLOW_COMMENT == true && -n $MIXFLOW_PULL_REQUEST ]] || return 0
  export MARK="<!-- mixflow graph diff: ${snapshots[*]} -->"
  printf '%s\n\n' "$MARK" | cat - "$work/report.md" >"$work/comment.md"
  (($(wc -c <"$work/comment.md") <= LONGEST_COMMENT)) || shorten
  post || echo "::warning::graph-diff: could not comment on #$MIXFLOW_PULL_REQUEST"
}

# What comes first is the most important, so the end goes, in whole lines.
shorten() {
  {
    printf '%s\n\n> The end is left out: it is in the summary of the job.\n\n' "$MARK"
    head -c $((LONGEST_COMMENT - 1000)) "$work/report.md" | sed '$d'
  } >"$work/comment.md"
}

post() {
  local comments="repos/$GITHUB_REPOSITORY/issues/$MIXFLOW_PULL_REQUEST/comments" found
  found=$(gh api --paginate "$comments" --jq \
    '.[] | select(.body | startswith(env.MARK)) | .id') || return
  if [[ -z $found ]]; then
    gh api --silent --method POST "$comments" --field "body=@$work/comment.md"
  else
    gh api --silent --method PATCH "repos/$GITHUB_REPOSITORY/issues/comments/${found%%$'\n'*}" \
      --field "body=@$work/comment.md"
  fi
}

main
