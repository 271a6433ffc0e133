//go:build linux

package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Rows are all rows there are.
func Rows() []Row {
	return append(httpRows(), dnsRows()...)
}

func httpRows() []Row {
	wrk := func(scheme, port string, size int, connections string) Load {
		return Load{Tool: "wrk", Args: []string{"-t1", "-c" + connections, "-d{seconds}s", "--latency", "-H", "Host: {name}", fmt.Sprintf("%s://{host}:{%s}/%d", scheme, port, size)}}
	}
	var rows []Row
	for _, size := range []int{1 << 10, 64 << 10} {
		rows = append(rows, Row{
			Name: fmt.Sprintf("hit-%dk", size>>10), Unit: "requests/s", Hits: true,
			Work:    fmt.Sprintf("a cached object of %d KiB by HTTP/1.1, 64 connections that are kept", size>>10),
			Load:    wrk("http", "port", size, "64"),
			Prepare: writeSite, Check: checkHTTP(size, false, false, true),
			Ours: ours(cdnSpec, httpArgs()...), Peers: []Peer{nginxCache(), varnish(), haproxyCache(), trafficserver(true), caddyFiles()},
		})
	}
	for _, size := range []int{1 << 10, 64 << 10} {
		rows = append(rows, Row{
			Name: fmt.Sprintf("hit-%dk-tls", size>>10), Unit: "requests/s", Hits: true,
			Work:    fmt.Sprintf("a cached object of %d KiB by HTTP/1.1 in TLS 1.3, 64 connections that are kept", size>>10),
			Load:    wrk("https", "tls", size, "64"),
			Prepare: writeSite, Check: checkHTTP(size, true, false, true),
			Ours: ours(cdnSpec, httpArgs()...), Peers: []Peer{nginxCache(), haproxyCache(), trafficserver(true), caddyFiles()},
		})
	}
	rows = append(rows, Row{
		Name: "hit-1k-h2", Unit: "requests/s", Hits: true,
		Work:    "a cached object of 1 KiB by HTTP/2 in TLS 1.3, 16 connections of 32 streams",
		Load:    Load{Tool: "h2load", Args: []string{"-t", "1", "-c", "16", "-m", "32", "-D", "{seconds}", "--connect-to={host}:{tls}", "https://{name}/1024"}},
		Prepare: writeSite, Check: checkHTTP(1<<10, true, true, true),
		Ours: ours(cdnSpec, httpArgs()...), Peers: []Peer{nginxCache(), haproxyCache(), trafficserver(true), caddyFiles()},
	})
	rows = append(rows, Row{
		Name: "proxy-1k", Unit: "requests/s", Plain: true,
		Work: "1 KiB from an origin each time by HTTP/1.1, connections that are kept on both sides, 64 clients; the origin shares the load's core",
		Load: wrk("http", "port", 1<<10, "64"), Check: checkHTTP(1<<10, false, false, false),
		Ours: ours(balancerSpec, "--http", "{host}:0", "--https", "", "--dns", ""), Peers: []Peer{nginxProxy(), haproxyProxy(), varnishProxy(), trafficserver(false), caddyProxy()},
	})
	return rows
}

// writeSite writes the objects as files, for servers that are no cache.
func writeSite(s Stage) error {
	dir := filepath.Join(s.Row, "site")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, size := range []int{1 << 10, 64 << 10} {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(size)), body(size), 0o644); err != nil {
			return err
		}
	}
	return nil
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

func httpArgs() []string {
	return []string{"--http", "{host}:{port}", "--https", "{host}:{tls}", "--dns", ""}
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

func cdnSpec(s Stage) (string, error) {
	cert, err := os.ReadFile(s.Cert)
	if err != nil {
		return "", err
	}
	key, err := os.ReadFile(s.Key)
	if err != nil {
		return "", err
	}
	return region + `---
kind: Distribution
name: site
aliases: [{name}]
origins: [{name: own, url: "http://{origin}"}]
defaultCacheBehavior: {targetOrigin: own}
---
kind: Certificate
name: site
certificate: |
` + indented(string(cert)) + `
privateKey: |
` + indented(string(key)) + "\n", nil
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

// nginxHead begins a configuration: one worker, connections that live as long as the client wants.
func nginxHead() string {
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;\n" // the workers must read folders that are root's alone
	}
	return user + `daemon off;
worker_processes 1;
pid {dir}/pid;
error_log stderr warn;
events { worker_connections 4096; }
http {
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000000;
  keepalive_timeout 300;
  client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3; uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;
  open_file_cache max=1000 inactive=1h;
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
  proxy_cache_path {dir}/cache keys_zone=c:16m max_size=256m inactive=1d use_temp_path=off;
  server {
    listen {host}:{port};
    listen {host}:{tls} ssl http2;
    ssl_certificate {cert};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.3;
    ssl_conf_command Ciphersuites `+suite+`;
    http2_max_concurrent_streams 1000;
    location / { proxy_pass http://{origin}; proxy_cache c; proxy_cache_valid 200 1d; }
  }
`, "keeps objects in files, which the kernel has in memory; open_file_cache")
}

func nginxProxy() Peer {
	return nginx(`
  upstream o { server {plain}; keepalive 128; keepalive_requests 1000000000; }
  server {
    listen {host}:{port};
    location / { proxy_pass http://o; proxy_http_version 1.1; proxy_set_header Connection ""; }
  }
`, "")
}

func varnishPeer(backend, sub, note string) Peer {
	return Peer{Name: "varnish", Needs: []Need{{Program: "varnishd", Package: "varnish"}}, Version: []string{"-V"}, Note: note,
		Start: func(_ context.Context, s Stage) (*Process, error) {
			host, port, _ := strings.Cut(s.Fill(backend), ":")
			if _, err := s.Write("c.vcl", fmt.Sprintf("vcl 4.1;\nbackend default { .host = %q; .port = %q; }\n%s", host, port, sub)); err != nil {
				return nil, err
			}
			return s.Start(nil, "varnishd", "-F", "-j", "none", "-n", "{dir}/n", "-f", "{dir}/c.vcl", "-a", "{host}:{port}", "-s", "default,256m", "-T", "none",
				"-p", "thread_pools=1", "-p", "thread_pool_min=200", "-p", "timeout_idle=300")
		}}
}

func varnish() Peer {
	return varnishPeer("{origin}", "sub vcl_backend_response { set beresp.ttl = 1d; }\n", "a thread for each connection that is busy; writes its log into shared memory")
}

func varnishProxy() Peer {
	return varnishPeer("{plain}", "sub vcl_recv { return (pass); }\n", "a cache that is told to pass")
}

func haproxy(name, body, note string) Peer {
	return Peer{Name: "haproxy", Needs: []Need{{Program: "haproxy", Package: "haproxy"}}, Version: []string{"-v"}, Note: note,
		Start: func(_ context.Context, s Stage) (*Process, error) {
			if _, err := s.Write("haproxy.cfg", `global
  nbthread 1
  maxconn 4096
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-bind-ciphersuites `+suite+`
  tune.h2.max-concurrent-streams 1000
defaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 300s
  timeout http-keep-alive 300s
  http-reuse always
`+body); err != nil {
				return nil, err
			}
			return s.Start(nil, "haproxy", "-db", "-f", "{dir}/haproxy.cfg")
		}}
}

func haproxyCache() Peer {
	return haproxy("cache", `cache c
  total-max-size 64
  max-object-size 1000000
  max-age 86400
frontend f
  bind {host}:{port}
  bind {host}:{tls} ssl crt {both} alpn h2,http/1.1
  http-request cache-use c
  http-response cache-store c
  default_backend b
backend b
  server o {origin}
`, "its cache is meant for small objects")
}

func haproxyProxy() Peer {
	return haproxy("proxy", `frontend f
  bind {host}:{port}
  default_backend b
backend b
  server o {plain}
`, "")
}

// trafficserver is Apache Traffic Server with one thread for all connections, as a cache in memory or as a proxy that keeps nothing.
func trafficserver(cache bool) Peer {
	origin, http := "{plain}", "CONFIG proxy.config.http.cache.http INT 0\n"
	if cache {
		origin, http = "{origin}", ""
	}
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
				"etc/records.config": `CONFIG proxy.config.http.server_ports STRING {port}:ip-in={host} {tls}:ssl:ip-in={host}
CONFIG proxy.config.admin.user_id STRING #-1
CONFIG proxy.config.exec_thread.autoconfig INT 0
CONFIG proxy.config.exec_thread.limit INT 1
CONFIG proxy.config.exec_thread.affinity INT 0
CONFIG proxy.config.accept_threads INT 0
CONFIG proxy.config.task_threads INT 1
CONFIG proxy.config.cache.threads_per_disk INT 1
CONFIG proxy.config.cache.ram_cache.size INT 134217728
CONFIG proxy.config.cache.ram_cache_cutoff INT 16777216
CONFIG proxy.config.log.logging_enabled INT 0
CONFIG proxy.config.http.keep_alive_no_activity_timeout_in INT 300
CONFIG proxy.config.http.keep_alive_no_activity_timeout_out INT 300
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
` + http,
				"etc/remap.config":         "map / http://" + origin + "/\n",
				"etc/ssl_multicert.config": "dest_ip=* ssl_cert_name={both}\n",
				"etc/storage.config":       "{dir}/cache 64M\n",
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
