// Package netns makes and takes away the network namespaces of a testbed, what is in them (links, addresses, routes,
// rules, settings, processes) and sockets inside them that this process uses. It is the only room that speaks netlink.
//
// A namespace is a name as `ip netns` sees it (a mount under /run/netns), with its loopback up and IPv6 without duplicate
// address detection, connected with nothing. This package knows nothing of sites, routers or testbeds, and keeps no
// list of what it made: the kernel does. So what a killed run left is found by its name and deleted by the next.
//
// When things break: a namespace that somebody deletes stays usable through the handles that are open, and its name is
// nobody's until it is made again, which a handle of the old one never touches. A thread of this process that
// cannot come back from a namespace is ended, not reused. Delete returns when processes, links and name are gone, or says what is not.
//
// Linux only, and for root: Missing says what a machine lacks.
package netns
