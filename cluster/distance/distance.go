// Package distance estimates the round trip between any two nodes, though each measures few of the others: from what either
// of the two measured; else from what was measured between their POPs or regions by others; else from network
// coordinates, which every node finds for itself from its probes (Vivaldi). It is the one importer of serf/coordinate.
//
// It measures nothing and sends nothing: round trips and coordinates are brought to it, and what a node says to others of its own
// is encoded here. Where paths are longer than a detour would be, no coordinate can be right; so coordinates are corrected by
// how wrong they are where something is measured nearby, and are the last to be asked. What nodes say of themselves is
// believed within bounds: one that lies spoils the estimates to itself.
package distance
