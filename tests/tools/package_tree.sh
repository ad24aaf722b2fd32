#!/bin/bash
# Installs the package $1 in the Debian tree $2, runs three nodes of it as their own user with two capabilities, with
# tunnels between them, removes it, and says what is left. To be run in a mount namespace of its own; $3 begins the names
# of the network namespaces.
set -euo pipefail
deb=$1 tree=$2 name=$3
mount --bind "$tree" "$tree"
mount -t proc proc "$tree/proc"
mount -t tmpfs run "$tree/run"
mount -t tmpfs dev "$tree/dev"
mkdir "$tree/dev/net"
mknod -m 666 "$tree/dev/null" c 1 3
mknod -m 666 "$tree/dev/zero" c 1 5
mknod -m 666 "$tree/dev/urandom" c 1 9
mknod -m 666 "$tree/dev/random" c 1 8
mknod -m 666 "$tree/dev/net/tun" c 10 200 # as udev makes it
files() {
    (cd "$tree" && find . -xdev -not -path './var/lib/dpkg/*' -not -path './var/log/*' -not -path './tmp/*' -not -name '*shadow-' \
        -not -name 'passwd-' -not -name 'group-' -not -path './root/*' | sort)
}
in_tree() { chroot "$tree" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "$@"; }

files >"$tree/root/before"
cp "$deb" "$tree/root/meshd.deb"
in_tree dpkg -i /root/meshd.deb
in_tree meshd --version
in_tree meshctl --help >/dev/null
in_tree install -d -o root -g meshd -m 770 /run/wireguard # tmpfiles.d does it on a running system

remove_namespaces() { for node in a b c; do ip netns del "$name-$node" 2>/dev/null || true; done; }
trap remove_namespaces EXIT
for node in a b c; do ip netns add "$name-$node"; done
ip link add ab netns "$name-a" type veth peer name ba netns "$name-b"
ip link add bc netns "$name-b" type veth peer name cb netns "$name-c"
pids=()
for entry in a:ab b:ba:bc c:cb; do
    IFS=: read -r -a words <<<"$entry"
    node=${words[0]}
    in_tree install -d -o meshd -g meshd -m 700 /var/lib/meshd "/run/meshd-$node"
    {
        printf '[node]\nname = "%s"\nstate_dir = "/var/lib/meshd/%s"\ncontrol_socket = "/run/meshd-%s/sock"\n' "$node" "$node" "$node"
        printf '[payments]\nenabled = false\n'
        for interface in "${words[@]:1}"; do
            ip -n "$name-$node" link set "$interface" up
            printf '[[interface]]\nname = "%s"\n' "$interface"
        done
    } >"$tree/etc/meshd/$node.toml"
    ip -n "$name-$node" link set lo up
    # The user and the capabilities of meshd.service.
    ip netns exec "$name-$node" chroot "$tree" setpriv --reuid meshd --regid meshd --clear-groups \
        --inh-caps -all,+net_admin,+net_raw --ambient-caps -all,+net_admin,+net_raw \
        --bounding-set -all,+net_admin,+net_raw /usr/bin/meshd run --config "/etc/meshd/$node.toml" \
        >"$tree/root/$node.log" 2>&1 &
    pids+=($!)
done
found=no
for _ in $(seq 60); do
    sleep 1
    routes=$(in_tree meshctl --socket /run/meshd-a/sock routes --json 2>/dev/null || true)
    (($(grep -o '"next_hop": "fe80' <<<"$routes" | wc -l) >= 2)) && found=yes && break
done
kill "${pids[@]}"
wait "${pids[@]}" || true
[[ $found == yes ]] || { cat "$tree"/root/?.log; echo "node a has no routes to the two others"; exit 1; }
left=$(for node in a b c; do ip -n "$name-$node" -o link | grep -v -e ' lo:' -e ' [abc][abc]@' || true; done)
[[ -z $left ]] || { echo "interfaces are left: $left"; exit 1; }
echo "three nodes found their routes"

in_tree dpkg --remove meshd
[[ -d $tree/var/lib/meshd/a ]] || { echo "the state is gone with the package"; exit 1; }
rm -rf "$tree"/var/lib/meshd/?
in_tree dpkg --purge meshd
files | diff "$tree/root/before" - && echo "nothing is left"
