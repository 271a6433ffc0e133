package dnsgeo

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
)

// realPrimary is a name server that others wrote: its command, and the files that it reads, with what is to be put in its place:
// DIR, PORT (its own), NOTIFY (the port that is told), SECRET.
type realPrimary struct {
	command  []string
	config   string
	optional bool // CI has it not
}

var realPrimaries = map[string]realPrimary{
	"BIND": {command: []string{"named", "-c", "DIR/config", "-f"}, config: `
		options {
			directory "DIR"; listen-on port PORT { 127.0.0.1; }; listen-on-v6 { none; }; pid-file none; lock-file none; session-keyfile none;
			recursion no; notify-delay 0; dnssec-validation no;
		};
		controls {};
		key "k." { algorithm hmac-sha256; secret "SECRET"; };
		zone "example.com" {
			type primary; file "DIR/zone"; ixfr-from-differences yes; allow-transfer { key "k."; };
			notify explicit; also-notify { 127.0.0.1 port NOTIFY key "k."; };
		};`},
	"NSD": {command: []string{"nsd", "-d", "-c", "DIR/config"}, config: `
server:
  ip-address: 127.0.0.1@PORT
  username: ""
  chroot: ""
  zonesdir: "DIR"
  database: ""
  zonelistfile: "DIR/list"
  xfrdfile: "DIR/xfrd"
  xfrdir: "DIR"
  pidfile: "DIR/pid"
  zonefiles-check: yes
remote-control:
  control-enable: no
key:
  name: "k."
  algorithm: hmac-sha256
  secret: "SECRET"
zone:
  name: "example.com"
  zonefile: "zone"
  store-ixfr: yes
  create-ixfr: yes
  provide-xfr: 127.0.0.1 k.
  notify: 127.0.0.1@NOTIFY k.
`},
	"Knot": {optional: true, command: []string{"knotd", "-c", "DIR/config"}, config: `
server:
    listen: 127.0.0.1@PORT
    rundir: DIR
database:
    storage: DIR
key:
  - id: k
    algorithm: hmac-sha256
    secret: SECRET
remote:
  - id: perigee
    address: 127.0.0.1@NOTIFY
    key: k
acl:
  - id: perigee
    key: k
    action: transfer
zone:
  - domain: example.com
    storage: DIR
    file: zone
    zonefile-load: difference
    zonefile-sync: -1
    notify: perigee
    acl: perigee
`},
}

// realHosts is how many names the zone has: so many that it takes some messages.
const realHosts = 5000

// realZone is a zone file of a serial; www has an address of its own for each.
func realZone(serial int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "$ORIGIN example.com.\n$TTL 60\n@ SOA ns me %d 3600 600 86400 30\n@ NS ns\nns A 127.0.0.1\nwww A 192.0.2.%d\n", serial, serial)
	b.WriteString("odd TYPE65280 \\# 2 abcd\nh HTTPS 1 . alpn=h2\nn NAPTR 10 100 \"s\" \"SIP+D2U\" \"\" _sip._udp\n*.w CNAME www\n")
	for i := range realHosts {
		if i != serial { // each version lacks one
			fmt.Fprintf(&b, "host%d A 192.0.2.1\nhost%d TXT \"the host of number %d\"\n", i, i, i)
		}
	}
	return b.String()
}

// free is a port that nobody had a moment ago.
func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// Other programs as primaries, where they are installed: their streams, signatures, differences and NOTIFY.
func TestZonesOfOtherProgramsAreTaken(t *testing.T) {
	for name, p := range realPrimaries {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(p.command[0]); err != nil {
				if os.Getenv("PERIGEE_REAL_CLIENTS") == "required" && !p.optional {
					t.Fatal(err)
				}
				t.Skip(err)
			}
			streams, err := net.Listen("tcp4", "127.0.0.1:0") // Knot tells by TCP
			if err != nil {
				t.Fatal(err)
			}
			notices, err := net.ListenPacket("udp4", streams.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			_, told, _ := net.SplitHostPort(notices.LocalAddr().String())
			dir, port := t.TempDir(), free(t)
			set := strings.NewReplacer("DIR", dir, "PORT", port, "NOTIFY", told, "SECRET", tsigSecret)
			write := func(file, text string) {
				t.Helper()
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			write("config", set.Replace(p.config))
			write("zone", realZone(1))
			var args []string
			for _, a := range p.command {
				args = append(args, set.Replace(a))
			}
			log, err := os.Create(filepath.Join(dir, "log"))
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Stdout, cmd.Stderr = log, log
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = cmd.Process.Signal(syscall.SIGTERM)
				_ = cmd.Wait()
				if t.Failed() {
					text, _ := os.ReadFile(log.Name())
					t.Logf("%s says\n%s", name, text)
				}
			}()

			s := New(Config{Dial: new(net.Dialer).DialContext, Copies: Copies{Dir: filepath.Join(dir, "copies")}})
			defer s.Close()
			at := netip.MustParseAddrPort("127.0.0.1:" + port)
			if err := s.Apply(copied(t, 1, spec.ZonePeer{Address: at.Addr(), Port: at.Port(), Key: "k"})); err != nil {
				t.Fatal(err)
			}
			go s.ServePacket(notices)
			go s.ServeStream(streams)
			within := func(serial int, took time.Duration) {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), took)
				defer cancel()
				began := time.Now()
				for s.CopyStates()[0].Serial != uint32(serial) {
					select {
					case <-ctx.Done():
						t.Fatalf("after %v: %+v", took, s.CopyStates()[0])
					case <-time.After(20 * time.Millisecond):
					}
				}
				t.Logf("serial %d after %v", serial, time.Since(began))
				says(t, s, "www.example.com. A", fmt.Sprintf("NOERROR aa\nwww.example.com. 60 A 192.0.2.%d", serial))
				says(t, s, fmt.Sprintf("host%d.example.com. TXT", serial), fmt.Sprintf("NXDOMAIN aa\nauthority example.com. 30 SOA ns.example.com. me.example.com. %d 3600 600 86400 30", serial))
			}
			within(1, 60*time.Second)
			says(t, s, "host4999.example.com. TXT", "NOERROR aa\nhost4999.example.com. 60 TXT \"the host of number 4999\"")
			says(t, s, "x.w.example.com. A", "NOERROR aa\nwww.example.com. 60 A 192.0.2.1\nx.w.example.com. 60 CNAME www.example.com.")
			says(t, s, "n.example.com. NAPTR", "NOERROR aa\nn.example.com. 60 NAPTR 10 100 \"s\" \"SIP+D2U\" \"\" _sip._udp.example.com.")
			says(t, s, "odd.example.com. TYPE65280", "NOERROR aa\nodd.example.com. 60 CLASS1 TYPE65280 \\# 2 abcd")
			for serial := 2; serial <= 3; serial++ {
				write("zone", realZone(serial))
				// A file that is changed within the second in which it was read is not seen to have changed.
				later := time.Now().Add(time.Duration(serial) * time.Minute)
				if err := os.Chtimes(filepath.Join(dir, "zone"), later, later); err != nil {
					t.Fatal(err)
				}
				if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
					t.Fatal(err)
				}
				within(serial, 60*time.Second)
			}
			c := s.Counters()
			t.Logf("taken %d, by differences %d, NOTIFY %d, signatures that are wrong %d", c["dns_secondary_taken_total"], c["dns_secondary_taken_changes_total"], c["dns_notifies_in_total"], c["dns_tsig_badsig_total"])
			if c["dns_secondary_taken_changes_total"] != 2 || c["dns_notifies_in_total"] == 0 || c["dns_secondary_fallbacks_total"] != 0 {
				t.Errorf("counted %v", c)
			}
			if err := s.Close(); err != nil { // what is taken is on disk by then
				t.Error(err)
			}
			z, _, err := s.disk().Load("example.com")
			if err != nil || z.Serial() != 3 || z.Names() < realHosts {
				t.Errorf("the disk has %v, %v", z, err)
			}
		})
	}
}
