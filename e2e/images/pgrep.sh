#!/bin/sh
# Prints the pids whose name contains $1; exit 1 when there are none.
found=1
for dir in /proc/[0-9]*; do
  read -r name <"$dir/comm" 2>/dev/null || continue
  case $name in
  *"$1"*) [ "${dir#/proc/}" = $$ ] || { echo "${dir#/proc/}"; found=0; } ;;
  esac
done
exit $found
