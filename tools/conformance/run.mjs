// Runs the public tests of HTTP caches (http-cache-tests of npm, https://cache-tests.fyi) on Perigee, and on the caches beside it that are
// installed, each as a plain reverse proxy of the tests' origin, and prints how many tests each passes. `make conformance` installs the tests
// and calls this.
//
//   node run.mjs MODULES [--perigee FILE] [--failed] [--json FILE] [--only ID,ID] [CACHE…]
//
// MODULES is the folder in which npm has put them. --failed prints what each cache did not pass, and what the tests say of it; --json writes all
// results to a file; --only runs these tests alone and prints their messages.

import { spawn, execFileSync } from 'node:child_process'
import fs from 'node:fs'
import http from 'node:http'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

const self = fileURLToPath(import.meta.url)
const [modules, ...rest] = process.argv.slice(2)
const options = { perigee: 'bin/perigee', failed: false, json: '', only: '', child: '' }
const names = []
for (let i = 0; i < rest.length; i++) {
  const name = rest[i].replace(/^--/, '')
  if (name === rest[i]) names.push(name)
  else if (typeof options[name] === 'boolean') options[name] = true
  else if (name in options) options[name] = rest[++i]
  else throw new Error(`there is no option ${rest[i]}`)
}
const from = file => import(pathToFileURL(path.join(path.resolve(modules), 'node_modules', file)).href)

// The tests, without those for browsers.
async function suites () {
  const all = [...(await from('http-cache-tests/tests/index.mjs')).default, (await from('http-cache-tests/tests/surrogate-control.mjs')).default]
  const only = new Set(options.only.split(',').filter(Boolean))
  return all.map(suite => ({
    ...suite,
    tests: suite.tests.filter(t => !t.browser_only && (only.size === 0 || only.has(t.id))).map(t => ({ ...t, dump: only.size > 0 }))
  }))
}

// child runs the tests on one cache: they keep their results in variables of a module, so each cache has a process of its own. The origin tells
// what a request is by a field, Req-Num, which a cache need not pass on; so it is told beside the cache as well.
async function child (base, beside) {
  const { runTests, getResults } = await from('http-cache-tests/client/runner.mjs')
  const fetch = (await from('node-fetch/lib/index.mjs')).default
  const ask = async (url, init) => {
    const test = /\/test\/([^/?]+)/.exec(url)
    const number = test && init.headers.find(h => h[0] === 'Req-Num')
    if (number) await (await fetch(`${beside}/next/${test[1]}/${number[1]}`)).text()
    return fetch(url, init)
  }
  const log = console.log
  console.log = (...args) => console.error(...args)
  await runTests(await suites(), ask, false, base, 50)
  log(JSON.stringify(getResults()))
}

// origin is the tests' own, which knows the number of a request from beside the cache too.
async function origin () {
  const handlers = {}
  for (const kind of ['config', 'state', 'test']) handlers[kind] = (await from(`http-cache-tests/server/handle-${kind}.mjs`)).default
  if (!options.only) console.log = () => {} // it says what it is asked
  const numbers = new Map()
  const server = http.createServer((request, response) => {
    const [kind, ...segments] = new URL(request.url, 'http://origin/').pathname.slice(1).split('/')
    if (kind === 'next') {
      numbers.set(segments[0], segments[1])
      response.end()
      return
    }
    if (kind === 'test') request.headers['req-num'] ??= numbers.get(segments[0])
    if (handlers[kind]) handlers[kind](segments, request, response)
    else {
      response.statusCode = 404
      response.end()
    }
  })
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))
  return server
}

// The caches. Each has the configuration with which it does by itself what the RFC says, and keeps what it may: nothing tells it more than that
// it has a cache, that it is one of this origin, and that what is stale may be validated.
const caches = {
  perigee: {
    program: () => options.perigee,
    version: ['version'],
    async start (s) {
      const [gossip, control, api] = [await freePort(), await freePort(), await freePort()]
      const data = path.join(s.dir, 'data')
      // What the origin is sent is in the key, so the policy names the fields that the tests vary; cookies, or none would be shared. Errors are
      // kept for as long as the origin says, and no longer.
      const spec = s.write('spec.yaml', `kind: CachePolicy
name: plain
defaultTTL: 0
maxTTL: 3153600000
heuristicTTL: true
requestDirectives: true
headers: {behavior: whitelist, items: [Foo, Bar, Baz, Abc, Accept-Language, Authorization]}
cookies: {behavior: whitelist, items: [session]}
queryStrings: {behavior: all}
---
kind: Distribution
name: test
aliases: [localhost]
origins: [{name: tests, url: "http://127.0.0.1:${s.origin}"}]
defaultCacheBehavior: {targetOrigin: tests, cachePolicy: plain, allowedMethods: [GET, HEAD, OPTIONS, PUT, POST, PATCH, DELETE]}
errorCachingMinTTL: 0
`)
      s.run(['node', '--data', data, '--bootstrap', '--name', 'test1', '--region', 'eu-central-1', '--pop', 'test1', '--bind', '127.0.0.1', '--gossip', `127.0.0.1:${gossip}`,
        '--control', `127.0.0.1:${control}`, '--api', `127.0.0.1:${api}`, '--drain', '0s', '--http', `127.0.0.1:${s.port}`, '--https', '', '--dns', ''])
      await until(() => execFileSync(s.program, ['apply', '-f', spec, '--api', data, '--wait'], { stdio: 'pipe' }))
    }
  },
  nginx: {
    program: () => 'nginx',
    version: ['-v'],
    async start (s) {
      s.run(['-e', 'stderr', '-p', s.dir, '-c', s.write('nginx.conf', `${os.userInfo().uid === 0 ? 'user root;' : ''}
daemon off;
pid ${s.dir}/pid;
error_log stderr crit;
events { worker_connections 2048; }
http {
  access_log off;
  client_body_temp_path ${s.dir}/t1; proxy_temp_path ${s.dir}/t2; fastcgi_temp_path ${s.dir}/t3; uwsgi_temp_path ${s.dir}/t4; scgi_temp_path ${s.dir}/t5;
  proxy_cache_path ${s.dir}/cache levels=1:2 keys_zone=c:8m max_size=100m use_temp_path=off;
  server {
    listen 127.0.0.1:${s.port};
    location / { proxy_pass http://127.0.0.1:${s.origin}; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_cache c; proxy_cache_revalidate on; }
  }
}
`)])
    }
  },
  varnish: {
    program: () => 'varnishd',
    version: ['-V'],
    async start (s) {
      s.run(['-F', '-j', 'none', '-n', path.join(s.dir, 'n'), '-f', s.write('c.vcl', `vcl 4.1;\nbackend default { .host = "127.0.0.1"; .port = "${s.origin}"; }\n`),
        '-a', `127.0.0.1:${s.port}`, '-s', 'malloc,64M', '-T', 'none', '-p', 'default_ttl=0', '-p', 'default_grace=0', '-p', 'default_keep=3600'])
    }
  },
  trafficserver: {
    program: () => 'traffic_server',
    version: ['--version'],
    async start (s) {
      for (const folder of ['etc', 'cache', 'run', 'log', 'var']) fs.mkdirSync(path.join(s.dir, folder))
      const root = s.write('runroot.yaml', `prefix: ${s.dir}
exec_prefix: ${s.dir}
bindir: /usr/bin
sbindir: /usr/bin
sysconfdir: ${s.dir}/etc
datadir: ${s.dir}/cache
includedir: ${s.dir}/include
libdir: /usr/lib/trafficserver
libexecdir: /usr/lib/trafficserver/modules
localstatedir: ${s.dir}/var
runtimedir: ${s.dir}/run
logdir: ${s.dir}/log
mandir: ${s.dir}/man
infodir: ${s.dir}/info
cachedir: ${s.dir}/cache
`)
      s.write('etc/records.config', `CONFIG proxy.config.http.server_ports STRING ${s.port}:ip-in=127.0.0.1
CONFIG proxy.config.admin.user_id STRING #-1
CONFIG proxy.config.log.logging_enabled INT 0
CONFIG proxy.config.url_remap.pristine_host_hdr INT 1
CONFIG proxy.config.http.cache.required_headers INT 1
CONFIG proxy.config.crash_log_helper STRING NULL
`)
      s.write('etc/remap.config', `map / http://127.0.0.1:${s.origin}/\n`)
      s.write('etc/storage.config', `${s.dir}/cache 256M\n`)
      s.write('etc/plugin.config', '')
      s.write('etc/ip_allow.yaml', 'ip_allow:\n  - apply: in\n    ip_addrs: 127.0.0.1\n    action: allow\n    methods: ALL\n')
      s.run(['--bind_stdout', `${s.dir}/log/out`, '--bind_stderr', `${s.dir}/log/out`], { TS_RUNROOT: root })
    }
  },
  squid: {
    program: () => 'squid',
    version: ['-v'],
    async start (s) {
      fs.chmodSync(s.dir, 0o777) // it becomes another user
      s.run(['-N', '-f', s.write('squid.conf', `http_port 127.0.0.1:${s.port} accel defaultsite=localhost no-vhost
cache_peer 127.0.0.1 parent ${s.origin} 0 no-query no-digest originserver default name=tests
cache_peer_access tests allow all
http_access allow all
cache_mem 64 MB
access_log none
cache_store_log none
cache_log ${s.dir}/cache.log
pid_filename none
coredump_dir ${s.dir}
shutdown_lifetime 1 second
`)])
    }
  }
}

const patience = 10000 // ms that a cache has to come up

async function until (act) {
  for (const began = Date.now(); ;) {
    try {
      return await act()
    } catch (err) {
      if (Date.now() - began > patience) throw err
      await new Promise(resolve => setTimeout(resolve, 200))
    }
  }
}

async function freePort () {
  const server = net.createServer()
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address()
  await new Promise(resolve => server.close(resolve))
  return port
}

// version is the first number in the first line that a program says of itself; undefined: it is not here.
function version (cache) {
  try {
    const [line] = spawnText(cache.program(), cache.version).split('\n')
    return /\d+\.\d+(\.\d+)?/.exec(line)?.[0] ?? ''
  } catch {
    return undefined
  }
}

function spawnText (program, args) {
  return execFileSync('sh', ['-c', 'command -v "$0" >/dev/null && exec "$0" "$@" 2>&1', program, ...args], { encoding: 'utf8' })
}

// measure has one cache tested, and returns what each test came to.
async function measure (name, originPort) {
  const cache = caches[name]
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'conformance-'))
  const port = await freePort()
  let server
  const stage = {
    dir,
    port,
    origin: originPort,
    program: cache.program(),
    write (file, text) {
      const at = path.join(dir, file)
      fs.writeFileSync(at, text)
      return at
    },
    run (args, env = {}) {
      const log = fs.openSync(path.join(dir, 'output'), 'a')
      server = spawn(this.program, args, { stdio: ['ignore', log, log], env: { ...process.env, ...env }, cwd: dir })
      fs.closeSync(log)
      server.on('error', () => {})
    }
  }
  try {
    if (name === 'perigee') stage.program = path.resolve(stage.program)
    await cache.start(stage)
    await until(async () => {
      await new Promise((resolve, reject) => net.connect(port, '127.0.0.1').on('connect', function () { resolve(this.destroy()) }).on('error', reject))
    })
    const asker = spawn(process.execPath, ['--no-warnings', self, modules, '--child', `http://localhost:${port} http://127.0.0.1:${originPort}`, '--only', options.only],
      { stdio: ['ignore', 'pipe', 'inherit'], env: { ...process.env, NODE_OPTIONS: '--dns-result-order=ipv4first' } })
    let out = ''
    for await (const piece of asker.stdout) out += piece
    return JSON.parse(out)
  } catch (err) {
    throw new Error(`${name} does not run: ${err.message}\n${fs.readFileSync(path.join(dir, 'output'), 'utf8').slice(-2000)}`)
  } finally {
    if (server && server.exitCode === null && server.signalCode === null) {
      const gone = new Promise(resolve => server.on('exit', resolve))
      server.kill('SIGTERM')
      const late = setTimeout(() => server.kill('SIGKILL'), 5000)
      await gone
      clearTimeout(late)
    }
    fs.rmSync(dir, { recursive: true, force: true })
  }
}

// judge says what a result is: passed, failed, or why it says nothing: setup (the test could not be made), retry (the cache asked again, which the
// tests do not understand), dependency (a test that it rests on was not passed).
function judge (test, results, all) {
  const result = results[test.id]
  for (const id of test.depends_on ?? []) {
    if (all.has(id) && judge(all.get(id), results, all) !== 'passed') return 'dependency'
  }
  if (result === true) return 'passed'
  if (result?.[0] === 'Setup') return result[1] === 'retry' ? 'retry' : 'setup'
  return 'failed'
}

const kinds = { required: 'required', optimal: 'optimal', check: 'behaviour' }

async function main () {
  const installed = Object.keys(caches).filter(name => names.length === 0 || names.includes(name)).map(name => [name, version(caches[name])])
  const missing = installed.filter(([, v]) => v === undefined).map(([name]) => name)
  for (const name of names) if (!(name in caches)) throw new Error(`there is no cache ${name}: ${Object.keys(caches).join(', ')}`)
  const log = console.log
  const server = await origin()
  const all = new Map((await suites()).flatMap(suite => suite.tests.map(t => [t.id, t])))
  const results = {}
  const rows = []
  for (const [name, number] of installed) {
    if (number === undefined) continue
    const found = results[name] = await measure(name, server.address().port)
    const counts = {}
    for (const test of all.values()) {
      const kind = kinds[test.kind ?? 'required']
      const verdict = judge(test, found, all)
      const c = counts[kind] ??= { passed: 0, failed: 0, all: 0 }
      c.all++
      if (verdict in c) c[verdict]++
      if (options.failed && verdict !== 'passed') log(`${name}  ${kind}  ${verdict}  ${test.id}  ${found[test.id]?.[1] ?? ''}`)
    }
    rows.push([`${name} ${number}`.trim(), ...Object.values(kinds).flatMap(kind => counts[kind] ? [`${counts[kind].passed} of ${counts[kind].all}`, String(counts[kind].failed)] : ['', ''])])
  }
  server.close()
  server.closeAllConnections()
  const head = ['cache', ...Object.values(kinds).flatMap(kind => [kind, kind === 'behaviour' ? 'not so' : 'failed'])]
  const table = [head, head.map(() => '---'), ...rows]
  const widths = head.map((_, i) => Math.max(...table.map(row => row[i].length)))
  for (const row of table) log('| ' + row.map((cell, i) => cell.padEnd(widths[i])).join(' | ') + ' |')
  if (missing.length > 0) log(`not installed: ${missing.join(', ')}`)
  if (options.json) fs.writeFileSync(options.json, JSON.stringify(results, null, 1))
}

if (options.child) await child(...options.child.split(' '))
else await main()
