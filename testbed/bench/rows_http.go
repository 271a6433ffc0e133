//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Rows are all rows there are.
func Rows() []Row {
	return append(append(httpRows(), dnsRows()...), relayRows()...)
}

// Sizes of objects.
const (
	small  = 1 << 10
	middle = 100 << 10
	large  = 10 << 20
)

// clients is how many connections a load keeps where a row says nothing else: more than a server of one thread can have in work.
const clients = 64

// memoryBytes is what caches in memory may take, of rows that are not about memory; filledBytes of those that are.
const (
	memoryBytes = 256 << 20
	filledBytes = 4 << 30
)

func httpRows() []Row {
	wrk := func(scheme, port string, size int) Load {
		return Load{Tool: "wrk", Args: []string{"-t1", fmt.Sprintf("-c%d", clients), "-d{seconds}s", "--latency", "-H", "Host: {name}", fmt.Sprintf("%s://{host}:{%s}/%d", scheme, port, size)}}
	}
	rows := []Row{{
		Name: "hit-1k", Unit: "requests/s", Hits: true, Size: small,
		Work:    "a cached object of 1 KiB by HTTP/1.1, 64 connections that are kept",
		Load:    wrk("http", "port", small),
		Prepare: writeSite, Check: checkHTTP(small, false, false, true),
		Ours: ours(cdnSpec("{origin}"), httpArgs(memoryBytes)...), Peers: []Peer{goLoop(small), nginxCache(), varnish(memoryBytes), haproxyCache(), trafficserver(true), caddyFiles()},
		Goals: []Goal{{"haproxy", 1.1}, {"nginx", 1.6}, {"varnish", 2.5}, {loopName, 0.85}},
	}}
	for _, size := range []int{middle, large} {
		connections := clients
		if size == large {
			connections = 8
		}
		rows = append(rows, Row{
			Name: "hit-" + sizeName(size), Unit: "requests/s", Hits: true, Size: int64(size),
			Work:    fmt.Sprintf("a cached object of %s by HTTP/1.1, %d connections that are kept; nginx and caddy have it in a file, which is in the kernel's memory", sizeText(size), connections),
			Load:    bodies(size, connections, 1),
			Prepare: writeSite, Check: checkHTTP(size, false, false, true),
			Ours: ours(cdnSpec("{origin}"), httpArgs(memoryBytes)...), Peers: []Peer{nginxCache(), varnish(memoryBytes), haproxyCache(), trafficserver(true), caddyFiles()},
			Goals: []Goal{{"nginx", 1.2}, {"varnish", 1.2}},
		})
	}
	for _, size := range []int{middle, large} {
		connections, objects, memory := clients, int64(2000), int64(8<<20)
		if size == large {
			connections, objects, memory = 8, 40, 128<<20 // a body is kept if it is at most an eighth of it
		}
		rows = append(rows, Row{
			Name: "hit-" + sizeName(size) + "-disk", Unit: "requests/s", Hits: true, Size: int64(size),
			Work:  fmt.Sprintf("%d cached objects of %s in turn by HTTP/1.1, %d connections that are kept, from a store on disk, which is in the kernel's memory", objects, sizeText(size), connections),
			Load:  bodies(size, connections, objects),
			Check: checkHTTP(size, false, false, true),
			Ready: fill(int64(size), objects),
			// A memory that holds next to nothing of this.
			Ours:  ours(cdnSpec("{origin}"), append(httpArgs(memory), diskFlag, fmt.Sprint(int64(2<<30)))...),
			Peers: []Peer{nginxCache(), varnishFile(), trafficserverDisk()},
			Goals: []Goal{{"nginx", 1.2}, {"varnish", 1.2}},
		})
	}
	for _, size := range []int{small, middle} {
		row := Row{
			Name: "hit-" + sizeName(size) + "-tls", Unit: "requests/s", Hits: true, Size: int64(size),
			Work:    fmt.Sprintf("a cached object of %s by HTTP/1.1 in TLS 1.3, 64 connections that are kept", sizeText(size)),
			Load:    wrk("https", "tls", size),
			Prepare: writeSite, Check: checkHTTP(size, true, false, true),
			Ours: ours(cdnSpec("{origin}"), httpArgs(memoryBytes)...), Peers: []Peer{nginxCache(), haproxyCache(), trafficserver(true), caddyFiles()},
		}
		if size == small {
			row.Goals = []Goal{{"nginx", 1}, {"caddy", 2}}
		}
		rows = append(rows, row)
	}
	return append(rows, Row{
		Name: "hit-1k-h2", Unit: "requests/s", Hits: true, Size: small,
		Work:    "a cached object of 1 KiB by HTTP/2 in TLS 1.3, 16 connections of 32 streams",
		Load:    Load{Tool: "h2load", Args: []string{"-t", "1", "-c", "16", "-m", "32", "-D", "{seconds}", "--connect-to={host}:{tls}", "https://{name}/1024"}},
		Prepare: writeSite, Check: checkHTTP(small, true, true, true),
		Ours: ours(cdnSpec("{origin}"), httpArgs(memoryBytes)...), Peers: []Peer{nginxCache(), haproxyCache(), trafficserver(true), caddyFiles()},
		Goals: []Goal{{"nginx", 1}, {"caddy", 2}},
	}, Row{
		Name: "hit-1k-h3", Unit: "requests/s", Hits: true, Size: small,
		Work:    "a cached object of 1 KiB by HTTP/3, 8 connections of 8 streams",
		Load:    Load{Tool: "own", Args: []string{"HTTP/3"}, Own: overH3(small, 8, 8)},
		Prepare: writeSite, Check: func(ctx context.Context, s Stage) error {
			if err := checkHTTP(small, true, false, true)(ctx, s); err != nil {
				return err
			}
			return speaksH3(ctx, s)
		},
		Ours: speakingH3(ours(cdnSpec("{origin}"), httpArgs(memoryBytes)...)), Peers: []Peer{caddyFiles()},
		Goals: []Goal{{"caddy", 1.5}},
	}, Row{
		Name: "miss-1k", Unit: "requests/s", Plain: true, Size: small,
		Work:    "1 KiB that no cache has or may store, each time another, by HTTP/1.1, 64 connections that are kept, and kept to the origin, which shares the load's core",
		Load:    Load{Tool: "wrk", Args: []string{"-t1", fmt.Sprintf("-c%d", clients), "-d{seconds}s", "--latency", "-s", "{row}/another.lua", "-H", "Host: {name}", "http://{host}:{port}/1024"}},
		Prepare: writeAnother, Check: checkHTTP(small, false, false, false),
		Ours: ours(missSpec, httpArgs(memoryBytes)...), Peers: []Peer{nginxMiss(), haproxyProxy(), varnishMiss(), trafficserverMiss(), caddyProxy()},
		Goals: []Goal{{"nginx", 1}},
	}, Row{
		Name: "miss-1k-kept", Unit: "requests/s", Size: small,
		Work:    "1 KiB that a cache keeps, each time another, by HTTP/1.1, 64 connections that are kept; the origin, by net/http, shares the load's core",
		Load:    Load{Tool: "wrk", Args: []string{"-t1", fmt.Sprintf("-c%d", clients), "-d{seconds}s", "--latency", "-s", "{row}/another.lua", "-H", "Host: {name}", "http://{host}:{port}/1024"}},
		Prepare: writeAnother, Check: checkHTTP(small, false, false, true),
		Ours: ours(cdnSpec("{origin}"), httpArgs(memoryBytes)...), Peers: []Peer{nginxCache(), haproxyCache(), varnish(memoryBytes), trafficserver(true)},
	}, Row{
		Name: "proxy-1k", Unit: "requests/s", Plain: true, Size: small,
		Work: "1 KiB from an origin each time by HTTP/1.1 through a load balancer, connections that are kept on both sides, 64 clients; the origin shares the load's core",
		Load: wrk("http", "port", small), Check: checkHTTP(small, false, false, false),
		Ours: ours(balancerSpec, "--http", "{host}:0", "--https", "", "--dns", ""), Peers: []Peer{nginxProxy(), haproxyProxy(), varnishProxy(), trafficserver(false), caddyProxy()},
		Goals: []Goal{{"nginx", 1}},
	}, Row{
		Name: "p99-1k", Unit: "µs of p99", Less: true, Hits: true, Size: small, Pace: 0.7,
		Work: "a cached object of 1 KiB by HTTP/1.1, 64 connections that are kept, at 70 % of what ours does at most",
		Load: Load{Tool: "own", Args: []string{"paced"}, Own: func(ctx context.Context, s Stage, d time.Duration) (Measured, error) {
			m, err := (&drive{address: s.at(s.Port), connections: clients, size: small, path: one(small), pace: s.Pace, last: d}).run(ctx)
			m.Value = micros(m.P99)
			return m, err
		}},
		Check: checkHTTP(small, false, false, true),
		Ours:  ours(cdnSpec("{origin}"), httpArgs(memoryBytes)...), Peers: []Peer{nginxCache(), haproxyCache()},
		Goals: []Goal{{"nginx", 1}},
	}, Row{
		Name: "memory-1k", Unit: "bytes of memory each", Less: true, Once: true, Size: small, Takes: 20 * time.Minute,
		Work:  "what a cache takes for an object of 1 KiB: its memory filled with --objects of them (1,000,000), less what it had before",
		Load:  Load{Tool: "own", Args: []string{"fill"}, Own: filled},
		Check: checkHTTP(small, false, false, true),
		Ours:  ours(cdnSpec("{origin}"), httpArgs(filledBytes)...), Peers: []Peer{varnish(filledBytes), nginxCache()},
		Goals: []Goal{{"varnish", 1}},
	}, Row{
		Name: "idle-conns", Unit: "bytes of memory each", Less: true, Once: true, Hits: true, Size: small, Takes: 5 * time.Minute,
		Work:    "what a connection takes that has been answered and is kept: the memory with --idle of them (10,000), less what it was before",
		Load:    Load{Tool: "own", Args: []string{"keep"}, Own: kept},
		Prepare: writeSite, Check: checkHTTP(small, false, false, true),
		Ours: ours(cdnSpec("{origin}"), httpArgs(memoryBytes)...), Peers: []Peer{nginxCache(), haproxyCache(), varnish(memoryBytes), caddyFiles()},
		Goals: []Goal{{"", 12 << 10}},
	})
}

func sizeName(size int) string {
	if size >= 1<<20 {
		return fmt.Sprintf("%dm", size>>20)
	}
	return fmt.Sprintf("%dk", size>>10)
}

func sizeText(size int) string {
	if size >= 1<<20 {
		return fmt.Sprintf("%d MiB", size>>20)
	}
	return fmt.Sprintf("%d KiB", size>>10)
}

// bodies is the load of large bodies: wrk reads them in pieces of 8 KiB, and would be the limit. One object has the plain path.
func bodies(size, connections int, objects int64) Load {
	path := one(int64(size))
	if objects > 1 {
		path = distinct(int64(size), objects)
	}
	return Load{Tool: "own", Args: []string{"bodies are dropped by the kernel"}, Own: func(ctx context.Context, s Stage, d time.Duration) (Measured, error) {
		return (&drive{address: s.at(s.Port), connections: connections, size: int64(size), path: path, last: d}).run(ctx)
	}}
}

// fillPasses is how often a cache is asked for all objects, at most, until it has them.
const fillPasses = 20

// fill asks a cache for each of the objects of a size, one after the other, until it has all of them: what comes at once may be more than
// there is room for, and a disk may not keep up.
func fill(size, objects int64) func(context.Context, Stage) error {
	return func(ctx context.Context, s Stage) error {
		for range fillPasses {
			before := s.run.origin.asked()
			m, err := (&drive{address: s.at(s.Port), connections: 1, size: size, path: distinct(size, objects), count: objects}).run(ctx)
			if err == nil && m.Failed != "" {
				err = errors.New(m.Failed)
			}
			if err != nil || s.run.origin.asked() == before {
				return err
			}
		}
		return fmt.Errorf("it does not keep %d objects, asked for %d times", objects, fillPasses)
	}
}

// writeSite writes the objects as files, for servers that are no cache.
func writeSite(s Stage) error {
	dir := filepath.Join(s.Row, "site")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, size := range []int{small, middle, large} {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(size)), body(size), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// writeAnother writes what has wrk ask for another path each time. The run of a row warms each server, so numbers begin at the clock's.
func writeAnother(s Stage) error {
	return os.WriteFile(filepath.Join(s.Row, "another.lua"), []byte(`local n = os.time() * 1000000
local head = "GET /1024/"
local rest = " HTTP/1.1\r\nHost: `+Name+`\r\n\r\n"
request = function()
  n = n + 1
  return head .. string.format("%.0f", n) .. rest
end
`), 0o644)
}

// diskFlag is what tells a node how many bytes of disk its cache may take.
const diskFlag = "--cache-disk-bytes"

// speakingH3 is ours where it answers by HTTP/3.
func speakingH3(p Peer) Peer {
	start := p.Start
	p.Start = func(ctx context.Context, s Stage) (*Process, error) {
		proc, err := start(ctx, s)
		if err != nil {
			return nil, err
		}
		if err := speaksH3(ctx, s); err != nil {
			proc.Stop()
			return nil, fmt.Errorf("%w: it does not answer by HTTP/3: %w", errLacks, err)
		}
		return proc, nil
	}
	return p
}

// checkHTTP asks twice: the answers must be right, and where it is a cache's the second must not have come from the origin.
func checkHTTP(size int, secure, h2, hit bool) func(context.Context, Stage) error {
	return func(ctx context.Context, s Stage) error {
		g := getting{address: s.at(s.Port), url: fmt.Sprintf("http://%s/%d", Name, size), size: size, h2: h2}
		if secure {
			g.address, g.url, g.cert = s.at(s.TLS), fmt.Sprintf("https://%s/%d", Name, size), s.Cert
		}
		if _, err := get(ctx, g); err != nil {
			return err
		}
		before := s.run.origin.asked()
		if _, err := get(ctx, g); err != nil {
			return err
		}
		if asked := s.run.origin.asked() - before; hit && asked > 0 {
			return fmt.Errorf("the second time the origin is asked again: it is not cached")
		}
		return nil
	}
}

func httpArgs(memory int64) []string {
	return []string{"--http", "{host}:{port}", "--https", "{host}:{tls}", "--dns", "", "--cache-bytes", fmt.Sprint(memory)}
}

// indented is a text with each line moved to the right, for YAML.
func indented(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ")
}

const region = `kind: Region
name: bench
location: {latitude: 50, longitude: 8}
pops: [{name: bench1}]
`

// missSpec is cdnSpec of what may not be stored: the policy that is the default keeps even that, for a second, as CloudFront's does.
func missSpec(s Stage) (string, error) {
	spec, err := cdnSpec("{plain}")(s)
	return strings.Replace(spec, "{targetOrigin: own}", "{targetOrigin: own, cachePolicy: as-told}", 1) + `---
kind: CachePolicy
name: as-told
`, err
}

// cdnSpec is a distribution with that origin, and its certificate.
func cdnSpec(origin string) func(s Stage) (string, error) {
	return func(s Stage) (string, error) {
		cert, err := certSpec(s)
		return region + `---
kind: Distribution
name: site
aliases: [{name}]
origins: [{name: own, url: "http://` + origin + `"}]
defaultCacheBehavior: {targetOrigin: own}
---
` + cert, err
	}
}

// certSpec is the certificate.
func certSpec(s Stage) (string, error) {
	cert, err1 := os.ReadFile(s.Cert)
	key, err2 := os.ReadFile(s.Key)
	return `kind: Certificate
name: site
certificate: |
` + indented(string(cert)) + `
privateKey: |
` + indented(string(key)) + "\n", errors.Join(err1, err2)
}

func balancerSpec(s Stage) (string, error) {
	host, port, _ := strings.Cut(s.Plain, ":")
	return region + `---
kind: TargetGroup
name: web
region: bench
protocol: HTTP
targets: [{address: "` + host + `", port: ` + port + `}]
healthCheck: {path: /1024, interval: 10}
---
kind: LoadBalancer
name: web
region: bench
listeners: [{protocol: HTTP, port: {port}, default: {forward: web}}]
`, nil
}

// suite is the cipher of TLS 1.3 that all servers are told to take, and that Go takes by itself where the processor has AES.
const suite = "TLS_AES_128_GCM_SHA256"

// nginxHead begins a configuration.
func nginxHead() string {
	user := ""
	if os.Geteuid() == 0 {
		user = "user root; # the worker must read folders that are root's alone\n"
	}
	return user + `daemon off;
worker_processes 1; # it has one core
pid {dir}/pid;
error_log stderr warn;
events { worker_connections 16384; } # more than any row keeps
http {
  access_log off; # nobody else writes one
  sendfile on; # files to sockets without a copy
  tcp_nopush off; # with it, an answer of 100 KiB waits for a delayed acknowledgement of 40 ms on the loopback
  tcp_nodelay on;
  keepalive_requests 1000000000; # connections live as long as the client wants
  keepalive_timeout 600;
  reset_timedout_connection on;
  client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3; uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;
  open_file_cache max=10000 inactive=1h; # a hit opens no file
  open_file_cache_valid 1h;
`
}

func nginx(config, note string) Peer {
	return Peer{Name: "nginx", Needs: []Need{{Program: "nginx", Package: "nginx-light"}}, Version: []string{"-v"}, Note: note,
		Start: func(_ context.Context, s Stage) (*Process, error) {
			if _, err := s.Write("nginx.conf", nginxHead()+config+"}\n"); err != nil {
				return nil, err
			}
			return s.Start(nil, "nginx", "-e", "stderr", "-p", "{dir}", "-c", "{dir}/nginx.conf")
		}}
}

func nginxCache() Peer {
	return nginx(`
  # Keys for two million objects; levels, because a folder of a million files is slow; no second copy to move a file.
  proxy_cache_path {dir}/cache levels=1:2 keys_zone=c:256m max_size=16g inactive=1d use_temp_path=off;
  upstream o { server {origin}; keepalive 128; keepalive_requests 1000000000; }
  server {
    listen {host}:{port} backlog=16384;
    listen {host}:{tls} ssl http2;
    ssl_certificate {cert};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.3;
    ssl_conf_command Ciphersuites `+suite+`; # the same for all
    http2_max_concurrent_streams 1000;
    location / { proxy_pass http://o; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host {name}; proxy_cache c; proxy_cache_valid 200 1d; }
  }
`, "keeps objects in files, which the kernel has in memory, uncounted; open_file_cache, sendfile")
}

// nginxMiss looks in its cache, and may not store what comes.
func nginxMiss() Peer {
	return nginx(`
  proxy_cache_path {dir}/cache levels=1:2 keys_zone=c:64m max_size=1g inactive=1d use_temp_path=off;
  upstream o { server {plain}; keepalive 128; keepalive_requests 1000000000; } # it would connect for each request
  server {
    listen {host}:{port} backlog=16384;
    location / { proxy_pass http://o; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host {name}; proxy_cache c; }
  }
`, "with its cache")
}

func nginxProxy() Peer {
	return nginx(`
  upstream o { server {plain}; keepalive 128; keepalive_requests 1000000000; } # it would connect for each request
  server {
    listen {host}:{port} backlog=16384;
    location / { proxy_pass http://o; proxy_http_version 1.1; proxy_set_header Connection ""; }
  }
`, "")
}

func varnishPeer(backend, storage, sub, note string) Peer {
	return Peer{Name: "varnish", Needs: []Need{{Program: "varnishd", Package: "varnish"}}, Version: []string{"-V"}, Note: note,
		Start: func(_ context.Context, s Stage) (*Process, error) {
			host, port, _ := strings.Cut(s.Fill(backend), ":")
			if _, err := s.Write("c.vcl", fmt.Sprintf("vcl 4.1;\nbackend default { .host = %q; .port = %q; }\n%s", host, port, sub)); err != nil {
				return nil, err
			}
			// No jail and no management port: nothing but the cache is to be there. One pool, as there is one core; threads for all clients that a
			// row has at work, made before they come. Connections live as long as the client wants, and as many as a row keeps may wait.
			return s.Start(nil, "varnishd", "-F", "-j", "none", "-n", "{dir}/n", "-f", "{dir}/c.vcl", "-a", "{host}:{port}", "-s", storage, "-T", "none",
				"-p", "thread_pools=1", "-p", "thread_pool_min=200", "-p", "timeout_idle=600", "-p", "listen_depth=16384")
		}}
}

// keptADay is what Varnish is told where objects are to stay.
const keptADay = "sub vcl_backend_response { set beresp.ttl = 1d; }\n"

// varnish keeps objects in memory, of which it may take so much.
func varnish(bytes int64) Peer {
	return varnishPeer("{origin}", fmt.Sprintf("malloc,%d", bytes), keptADay, "a thread for each connection that is busy; writes its log into shared memory")
}

func varnishFile() Peer {
	return varnishPeer("{origin}", "file,{dir}/store,2g", keptADay, "its storage is a mapped file; a thread for each connection that is busy")
}

// varnishMiss does what its built-in rules say of what may not be stored.
func varnishMiss() Peer {
	return varnishPeer("{plain}", fmt.Sprintf("malloc,%d", memoryBytes), "", "with its cache: remembers of each path that it may not be stored")
}

func varnishProxy() Peer {
	return varnishPeer("{plain}", fmt.Sprintf("malloc,%d", memoryBytes), "sub vcl_recv { return (pass); }\n", "a cache that is told to pass")
}

func haproxy(body, note string) Peer {
	return Peer{Name: "haproxy", Needs: []Need{{Program: "haproxy", Package: "haproxy"}}, Version: []string{"-v"}, Note: note,
		Start: func(_ context.Context, s Stage) (*Process, error) {
			if _, err := s.Write("haproxy.cfg", `global
  # One core. It reckons with two files for each connection, and would refuse to start where fewer may be open.
  nbthread 1
  maxconn 12000
  no strict-limits
  ssl-default-bind-options ssl-min-ver TLSv1.3
  # The same for all.
  ssl-default-bind-ciphersuites `+suite+`
  tune.h2.max-concurrent-streams 1000
defaults
  mode http
  # Connections live as long as the client wants, and are kept to the origin for any client.
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  timeout http-keep-alive 600s
  http-reuse always
`+body); err != nil {
				return nil, err
			}
			return s.Start(nil, "haproxy", "-db", "-f", "{dir}/haproxy.cfg")
		}}
}

func haproxyCache() Peer {
	return haproxy(`cache c
  # As much as the others have; an object may take half of it at most.
  total-max-size 256
  max-object-size 20000000
  max-age 86400
frontend f
  bind {host}:{port} backlog 16384
  bind {host}:{tls} ssl crt {both} alpn h2,http/1.1
  http-request cache-use c
  http-response cache-store c
  default_backend b
backend b
  server o {origin}
`, "its cache is meant for small objects")
}

func haproxyProxy() Peer {
	return haproxy(`frontend f
  bind {host}:{port} backlog 16384
  default_backend b
backend b
  server o {plain}
`, "no cache")
}

// trafficserver is Apache Traffic Server as a cache in memory, or as a proxy that keeps nothing.
func trafficserver(cache bool) Peer {
	if cache {
		return trafficserverPeer("{origin}", "# Objects of all sizes from memory.\nCONFIG proxy.config.cache.ram_cache.size INT 268435456\nCONFIG proxy.config.cache.ram_cache_cutoff INT 33554432\n")
	}
	return trafficserverPeer("{plain}", "CONFIG proxy.config.http.cache.http INT 0\n")
}

// trafficserverDisk is a cache whose memory holds none of what a row has.
func trafficserverDisk() Peer {
	return trafficserverPeer("{origin}", "# Next to nothing from memory.\nCONFIG proxy.config.cache.ram_cache.size INT 1048576\nCONFIG proxy.config.cache.ram_cache_cutoff INT 65536\n")
}

// trafficserverMiss is a cache that may not store what comes.
func trafficserverMiss() Peer {
	return trafficserverPeer("{plain}", "")
}

// trafficserverPeer has one thread for all connections.
func trafficserverPeer(origin, more string) Peer {
	return Peer{Name: "trafficserver", Needs: []Need{{Program: "traffic_server", Package: "trafficserver"}}, Version: []string{"--version"},
		Note: "one thread for connections; others for its disk and its log",
		Start: func(_ context.Context, s Stage) (*Process, error) {
			for name, text := range map[string]string{
				"runroot.yaml": `prefix: {dir}
exec_prefix: {dir}
bindir: /usr/bin
sbindir: /usr/bin
sysconfdir: {dir}/etc
datadir: {dir}/cache
includedir: {dir}/include
libdir: /usr/lib/trafficserver
libexecdir: /usr/lib/trafficserver/modules
localstatedir: {dir}/var
runtimedir: {dir}/run
logdir: {dir}/log.d
mandir: {dir}/man
infodir: {dir}/info
cachedir: {dir}/cache
`,
				"etc/records.config": `# One core: one thread for connections, which accepts too, and no more than it must have for disk and tasks.
# It need not change its user. No log. Connections live as long as the client wants, and are shared to the origin.
CONFIG proxy.config.http.server_ports STRING {port}:ip-in={host} {tls}:ssl:ip-in={host}
CONFIG proxy.config.admin.user_id STRING #-1
CONFIG proxy.config.exec_thread.autoconfig INT 0
CONFIG proxy.config.exec_thread.limit INT 1
CONFIG proxy.config.exec_thread.affinity INT 0
CONFIG proxy.config.accept_threads INT 0
CONFIG proxy.config.task_threads INT 1
CONFIG proxy.config.cache.threads_per_disk INT 1
CONFIG proxy.config.log.logging_enabled INT 0
CONFIG proxy.config.http.keep_alive_no_activity_timeout_in INT 600
CONFIG proxy.config.http.keep_alive_no_activity_timeout_out INT 600
CONFIG proxy.config.http.server_session_sharing.pool STRING global
CONFIG proxy.config.http.server_session_sharing.match STRING both
CONFIG proxy.config.url_remap.remap_required INT 1
CONFIG proxy.config.url_remap.pristine_host_hdr INT 0
CONFIG proxy.config.http2.max_concurrent_streams_in INT 1000
CONFIG proxy.config.http2.max_requests_in INT 0
CONFIG proxy.config.ssl.server.cert.path STRING {dir}/etc
CONFIG proxy.config.ssl.server.private_key.path STRING {dir}/etc
CONFIG proxy.config.ssl.server.TLSv1_3.cipher_suites STRING ` + suite + `
CONFIG proxy.config.crash_log_helper STRING NULL
` + more,
				"etc/remap.config":         "map / http://" + origin + "/\n",
				"etc/ssl_multicert.config": "dest_ip=* ssl_cert_name={both}\n",
				"etc/storage.config":       "{dir}/cache 2G\n",
				"etc/plugin.config":        "", "etc/ip_allow.yaml": "ip_allow:\n  - apply: in\n    ip_addrs: 127.0.0.1\n    action: allow\n    methods: ALL\n",
				"cache/none": "", "run/none": "", "log.d/none": "", "var/none": "",
			} {
				if _, err := s.Write(name, text); err != nil {
					return nil, err
				}
			}
			return s.Start([]string{"TS_RUNROOT=" + filepath.Join(s.Dir, "runroot.yaml")}, "traffic_server", "--bind_stdout", "{dir}/log", "--bind_stderr", "{dir}/log")
		}}
}

func caddy(body, note string) Peer {
	return Peer{Name: "caddy", Needs: []Need{{Program: "caddy", Make: "make peers"}}, Module: "github.com/caddyserver/caddy/v2", Note: note,
		Start: func(_ context.Context, s Stage) (*Process, error) {
			if _, err := s.Write("Caddyfile", "{\n\tadmin off\n\tauto_https off\n\tpersist_config off\n\tdefault_sni {name}\n\tfallback_sni {name}\n\tstorage file_system {dir}/storage\n}\n"+body); err != nil {
				return nil, err
			}
			return s.Start([]string{"HOME=" + s.Dir, "XDG_CONFIG_HOME=" + s.Dir, "XDG_DATA_HOME=" + s.Dir}, "caddy", "run", "--adapter", "caddyfile", "--config", "{dir}/Caddyfile")
		}}
}

func caddyFiles() Peer {
	return caddy("http://{name}:{port} {\n\tbind {host}\n\troot * {row}/site\n\tfile_server\n}\n"+
		"https://{name}:{tls} {\n\tbind {host}\n\ttls {cert} {key}\n\troot * {row}/site\n\tfile_server\n}\n",
		"has no cache of its own: serves files")
}

func caddyProxy() Peer {
	return caddy("http://{name}:{port} {\n\tbind {host}\n\treverse_proxy {plain} {\n\t\ttransport http {\n\t\t\tkeepalive_idle_conns_per_host 128\n\t\t}\n\t}\n}\n", "")
}
