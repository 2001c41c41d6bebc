# Says what a container that runs an image is like from inside, with the few programs that the image has.
exec >/workspace/findings 2>/workspace/errors
say() { echo "$1: $(echo $2)"; }
try() { name=$1; shift; if "$@" >/dev/null 2>&1; then say "$name" yes; else say "$name" no; fi; }
seen() { if [ -e "$2" ]; then say "$1" present; else say "$1" absent; fi; }
agent="setpriv --reuid 1000 --regid 1000 --clear-groups"

ls -l /proc/1/fd >/workspace/descriptors
say leaked_descriptors "$(while read -r line; do
  case "$line" in *' /dev/null' | *' /workspace/'* | *' /proc/'* | total*) ;; *) echo "$line" ;; esac
done </workspace/descriptors)"
say root_files "$(ls /)"
say motd "$(cat /etc/motd)"
seen hidden /hidden
seen machine_programs /usr
say path "$PATH"
say home "$HOME"
say term "$TERM"
say lang "$LANG"
say greeting "$GREETING"
say user_0 "$(id -un 0)"
say user_1000 "$($agent id -un)"
say group_1000 "$($agent id -gn)"
read -r line </etc/hosts
say localhost "$line"
say resolv_conf "$([ -f /etc/resolv.conf ] && [ ! -s /etc/resolv.conf ] && echo 0)"
while read -r _ _ _ _ point flags _; do
  if [ "$point" = / ]; then say root_flags "${flags%,relatime}"; fi
done </proc/self/mountinfo

seen left_by_another /written
try root_writable touch /written
try file_changed sh -c 'echo changed >/etc/motd'
try agent_root_writable $agent touch /file
try agent_opened_writable $agent touch /opened/file
try agent_tmp_writable $agent touch /tmp/file
try proc_sys_writable sh -c 'echo 1 >/proc/sys/kernel/core_uses_pid'
try device sh -c ': </opened/device'
# What is hard to remove: a deep tree that nobody may enter.
deep() { cd /opened && i=0 && while [ $i -lt 600 ]; do mkdir d && cd d || return 1; i=$((i + 1)); done; chmod 000 /opened/d; }
try deep deep
exit 42
