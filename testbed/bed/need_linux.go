package bed

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/perigee-net/perigee/testbed/netns"
	"github.com/perigee-net/perigee/testbed/wan"
)

// Need is something that the machine lacks, and how to get it.
type Need = netns.Need

// Missing is what a bed of this world needs and this machine lacks, with the links that Up chooses by itself.
func Missing(w *wan.World) []Need {
	kind := Userspace
	if has, err := netns.HasNetem(); err == nil && has {
		kind = Netem
	}
	return missing(w, kind, systemFolders())
}

// missing is Missing with links of a kind, and where programs are looked for besides the search path.
func missing(w *wan.World, links string, more []string) []Need {
	list := netns.Missing()
	if links == Netem {
		list = slices.DeleteFunc(list, func(n Need) bool { return n.What == tunDevice })
	}
	for _, p := range wanted(w) {
		if _, err := find(p.What, more); err != nil {
			p.What = "the program " + p.What
			list = append(list, p)
		}
	}
	return list
}

// tunDevice is what links in user space are made by.
const tunDevice = "/dev/net/tun"

// wanted are the programs that hosts of this world run, besides perigee.
func wanted(w *wan.World) []Need {
	get := func(name string) string { return "apt-get install -y --no-install-recommends " + name }
	needs := []Need{{What: "bird", Why: "sites' routers run it", Get: get("bird2")}}
	if len(hostsOf(w, wan.Resolver)) > 0 {
		needs = append(needs, Need{What: "unbound", Why: "sites' resolvers run it", Get: get("unbound")})
	}
	if len(hostsOf(w, wan.Root))+len(hostsOf(w, wan.TLD)) > 0 {
		needs = append(needs, Need{What: "nsd", Why: "the name servers of the root and of test. run it", Get: get("nsd")})
	}
	for _, o := range hostsOf(w, wan.Origin) {
		if o.Program == wan.Nginx {
			return append(needs, Need{What: "nginx", Why: fmt.Sprintf("the origin %s runs it", o.Name), Get: get("nginx-light")})
		}
	}
	return needs
}

// find finds a program on the search path, or else in folders that an ordinary user's path has not.
func find(name string, more []string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return filepath.Abs(path)
	}
	for _, dir := range more {
		at := filepath.Join(dir, name)
		if info, err := os.Stat(at); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return at, nil
		}
	}
	return "", err
}
