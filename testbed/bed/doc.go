// Package bed builds a whole laboratory on one machine: a network namespace for each host and each site's router, links
// with latency between the sites, BIRD in the routers, real resolvers and name servers, and real perigee nodes. It breaks
// what it built when told to, and takes it down again.
//
// It is not a supervisor: a process that ends stays ended. There is no daemon but the pump, which carries the links
// where the kernel cannot. What is true of a bed is what the kernel shows: bed.json in its folder says what was wanted,
// and no number of a process in it is believed.
//
// When something breaks: Up leaves nothing if it fails. Down works from the names of namespaces and the folder alone,
// whatever was killed and however much of the bed there ever was; so does the Up that comes after. A bed is reached by
// root only, never touches the machine's own links, routes or rules, and has no way out to them.
package bed
