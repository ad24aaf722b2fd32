// SPDX-License-Identifier: MIT OR GPL-2.0-only
// The fast lane: carries packets of flows that the daemon put into `places`, at tc ingress, before nftables sees them.
//
// Only what is in no way unusual is carried here; all else is left to the kernel's own way (TC_ACT_UNSPEC: filters that
// the operator has added behind this one come first), which meters and polices it. A packet has the same length at layer 3 when it comes in and when it goes out, so that one count
// serves both neighbours. The daemon's side is meshd/kernel/lane.py; why it is so, docs/adr/0016-a-fast-lane.md.
// After a change: tools/lane, which compiles it into lane.json.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define NETWORK16(x) __builtin_bswap16(x)  // all machines that it runs on are little-endian
#define FLOWS 16384                        // a power of two; behind them is one more place, for `head`
#define TRIES 4                            // places where a flow may be
#define MILLISECOND 1000000ull
#define ROUTE_LIFETIME (100 * MILLISECOND)
#define LONG_WAY_INTERVAL (1000 * MILLISECOND)
// Of the two bits of the TOS byte that tell them apart: best effort, bulk, interactive, interactive bulk.
#define PRIORITIES 0x4620u

static void *(*map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static __u64 (*now_ns)(void) = (void *)BPF_FUNC_ktime_get_coarse_ns;
static long (*fib_lookup)(void *context, struct bpf_fib_lookup *, int size, __u32 flags) = (void *)BPF_FUNC_fib_lookup;
static long (*csum_update)(struct __sk_buff *, __u32 difference) = (void *)BPF_FUNC_csum_update;
static long (*redirect)(__u32 ifindex, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*redirect_neigh)(__u32 ifindex, void *next, int size, __u64 flags) = (void *)BPF_FUNC_redirect_neigh;

struct key {
  __u32 ifindex;  // where it came in
  __u8 mac[8];    // who sent it; all zeros in a tunnel
  __u32 source[4], destination[4];  // IPv4 as ::ffff:a.b.c.d
};

struct flow {
  __u32 is_open;         // daemon: may be carried here; shut by writing 0
  __u32 ifindex;         // daemon: where it goes out
  __u8 to[6], from[6];   // MAC addresses, of the neighbour (daemon) and our own; nothing in a tunnel
  __u16 has_mac;         // daemon: whether it goes out with them
  __u16 mtu;             // of the route
  __u64 looked_at;       // when the route was last looked up
  __u64 long_way_at;     // when the next packet goes the kernel's own way
  __u64 bytes, packets;  // carried; they only ever grow
  __u64 first_bytes;     // daemon: `bytes` when this flow got the place
  struct key key;        // daemon
  __u32 is_taken;        // daemon: the place has counts of a flow, open or not
  __u64 serial, reserved;  // daemon: of the flow
};

struct head {
  __u64 routes_changed_at;  // daemon: what was looked up before does not hold any more
  __u64 layout;             // daemon: by which the next one knows this table
  __u32 keeps_priority;     // daemon: net.ipv4.ip_forward_update_priority is 0
};

extern char places[];  // the map, of 128-byte values; the loader puts its file descriptor there

ALWAYS_INLINE __u32 first_place(const struct key *key)
{
  const __u64 *word = (const __u64 *)key;
  __u64 hash = 0;

#pragma unroll
  for (int i = 0; i < 5; i++) {
    hash = (hash ^ word[i]) * 0x9e3779b97f4a7c15ull;
    hash ^= hash >> 29;
  }
  hash = (hash ^ key->destination[3]) * 0x9e3779b97f4a7c15ull;
  return hash >> 48;
}

ALWAYS_INLINE int is_same(const struct key *a, const struct key *b)
{
  const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

  return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3] && x[4] == y[4] &&
         a->destination[3] == b->destination[3];
}

ALWAYS_INLINE struct flow *find(const struct key *key)
{
  const __u32 first = first_place(key);

#pragma unroll
  for (int i = 0; i < TRIES; i++) {
    const __u32 at = (first + i) & (FLOWS - 1);
    struct flow *flow = map_lookup(places, &at);
    if (!flow)
      return 0;
    if (flow->is_open && is_same(&flow->key, key))
      return flow;
  }
  return 0;
}

// Whether the kernel, by its rules and routes of now, would send it the way that the daemon has seen it go.
ALWAYS_INLINE int is_its_way(struct __sk_buff *skb, struct bpf_fib_lookup *route, struct flow *flow)
{
  if (fib_lookup(skb, route, sizeof *route, 0) != BPF_FIB_LKUP_RET_SUCCESS || route->ifindex != flow->ifindex)
    return 0;
  if (flow->has_mac) {
    const __u16 *found = (const __u16 *)route->dmac, *wanted = (const __u16 *)flow->to;
    if (found[0] != wanted[0] || found[1] != wanted[1] || found[2] != wanted[2])
      return 0;
    __builtin_memcpy(flow->from, route->smac, ETH_ALEN);
  }
  return 1;
}

ALWAYS_INLINE int is_ipv4_header_whole(const struct iphdr *ip)
{
  const __u32 *word = (const __u32 *)ip;
  __u64 sum = (__u64)word[0] + word[1] + word[2] + word[3] + word[4];

  sum = (sum & 0xffffffff) + (sum >> 32);
  sum = (sum & 0xffff) + (sum >> 16);
  sum = (sum & 0xffff) + (sum >> 16);
  sum = (sum & 0xffff) + (sum >> 16);
  return sum == 0xffff;
}

ALWAYS_INLINE int carry(struct __sk_buff *skb, const int has_mac)
{
  const int start = has_mac ? ETH_HLEN : 0;
  void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
  struct key key = {.ifindex = skb->ifindex};
  struct bpf_fib_lookup route = {.ifindex = skb->ifindex};
  const __u32 behind = FLOWS;
  __u32 length;

  // Of several segments in one: what the other end sees may be cut in another way.
  if (skb->pkt_type != PACKET_HOST || skb->vlan_present || skb->gso_segs > 1)
    return TC_ACT_UNSPEC;
  if (has_mac) {
    const struct ethhdr *ethernet = data;
    if (data + sizeof *ethernet > end)
      return TC_ACT_UNSPEC;
    __builtin_memcpy(key.mac, ethernet->h_source, ETH_ALEN);
  }
  if (skb->protocol == NETWORK16(ETH_P_IP)) {
    const struct iphdr *ip = data + start;
    if ((void *)(ip + 1) > end || *(const __u8 *)ip != 0x45 || ip->ttl <= 1 || !is_ipv4_header_whole(ip))
      return TC_ACT_UNSPEC;  // version 4, no options
    length = NETWORK16(ip->tot_len);
    key.source[2] = key.destination[2] = 0xffff0000;
    key.source[3] = route.ipv4_src = ip->saddr;
    key.destination[3] = route.ipv4_dst = ip->daddr;
    route.family = 2;  // AF_INET
    route.l4_protocol = ip->protocol;
    route.tos = ip->tos;
  } else if (skb->protocol == NETWORK16(ETH_P_IPV6)) {
    const struct ipv6hdr *ip = data + start;
    if ((void *)(ip + 1) > end || ip->version != 6 || ip->hop_limit <= 1 || ip->nexthdr == 0)
      return TC_ACT_UNSPEC;  // hop-by-hop options are for routers
    length = sizeof *ip + NETWORK16(ip->payload_len);
    __builtin_memcpy(key.source, &ip->saddr, 16);
    __builtin_memcpy(key.destination, &ip->daddr, 16);
    __builtin_memcpy(route.ipv6_src, &ip->saddr, 16);
    __builtin_memcpy(route.ipv6_dst, &ip->daddr, 16);
    route.family = 10;  // AF_INET6
    route.l4_protocol = ip->nexthdr;
    route.flowinfo = *(const __u32 *)ip & 0xffffff0f;
  } else {
    return TC_ACT_UNSPEC;
  }
  if (skb->len != start + length)  // padded, or cut off
    return TC_ACT_UNSPEC;
  route.tot_len = length;

  struct flow *flow = find(&key);
  const struct head *head = map_lookup(places, &behind);
  if (!flow || !head)
    return TC_ACT_UNSPEC;
  const __u64 now = now_ns();
  const int is_known = now < flow->looked_at + ROUTE_LIFETIME && flow->looked_at > head->routes_changed_at;
  // From a tunnel to a link the next hop's address is needed each time, to find where the header is to be made for.
  if (!is_known || (flow->has_mac && !has_mac)) {
    if (now >= flow->long_way_at) {
      // The kernel asks now and then whether the neighbour is still there, and the meter sees that the flow goes on.
      flow->long_way_at = now + LONG_WAY_INTERVAL;
      return TC_ACT_UNSPEC;
    }
    if (!is_its_way(skb, &route, flow))
      return TC_ACT_UNSPEC;
    flow->looked_at = now;
    flow->mtu = route.mtu_result;
  } else if (length > flow->mtu) {
    return TC_ACT_UNSPEC;
  }

  data = (void *)(long)skb->data;
  end = (void *)(long)skb->data_end;
  if (skb->protocol == NETWORK16(ETH_P_IP)) {
    struct iphdr *ip = data + start;
    if ((void *)(ip + 1) > end)
      return TC_ACT_UNSPEC;
    const __u32 sum = ip->check + 1;  // one less in the high byte of a word: RFC 1624
    ip->check = sum + (sum >= 0xffff);
    ip->ttl--;
    // Queues go by it. The kernel sets it where it carries IPv4 (rt_tos2priority), and leaves it where it carries IPv6.
    if (!head->keeps_priority)
      skb->priority = PRIORITIES >> ((ip->tos >> 3 & 3) * 4) & 7;
  } else {
    struct ipv6hdr *ip = data + start;
    if ((void *)(ip + 1) > end)
      return TC_ACT_UNSPEC;
    ip->hop_limit--;
    csum_update(skb, 0xfeff);  // what the network card has summed up, if it has: less 0x0100 as it lies in memory
  }
  __sync_fetch_and_add(&flow->bytes, length);
  __sync_fetch_and_add(&flow->packets, 1);

  if (!flow->has_mac)
    return redirect(flow->ifindex, 0);
  if (!has_mac) {
    struct bpf_redir_neigh next = {.nh_family = route.family};
    __builtin_memcpy(next.ipv6_nh, route.ipv6_dst, 16);
    return redirect_neigh(flow->ifindex, &next, sizeof next, 0);
  }
  struct ethhdr *ethernet = data;
  if (data + sizeof *ethernet > end)
    return TC_ACT_SHOT;
  __builtin_memcpy(ethernet->h_dest, flow->to, ETH_ALEN);
  __builtin_memcpy(ethernet->h_source, flow->from, ETH_ALEN);
  return redirect(flow->ifindex, 0);
}

__attribute__((section("link"), used)) int from_link(struct __sk_buff *skb)
{
  return carry(skb, 1);
}

__attribute__((section("tunnel"), used)) int from_tunnel(struct __sk_buff *skb)
{
  return carry(skb, 0);
}
