package event

import (
	"fmt"
	"slices"
	"strings"

	"github.com/perigee-net/perigee/cluster/spec"
)

// zone makes the things of one hosted zone.
type zone struct {
	*builder
	hosted *spec.HostedZone
	sets   map[set][]*spec.Record
	made   map[set]int32 // none: nothing of it depends on anything, or it is being made
}

// set is the records that one question is answered from.
type set struct{ owner, kind string }

// hostedZone has a thing for each set of records whose answer depends on nodes or verdicts, and for each such record.
func (b *builder) hostedZone(h *spec.HostedZone) {
	if !slices.ContainsFunc(h.Records.Special(), depends) {
		return
	}
	z := zone{builder: b, hosted: h, sets: map[set][]*spec.Record{}, made: map[set]int32{}}
	records := h.Records.List()
	for i := range records {
		r := &records[i]
		at := set{h.Owner(r.Name), r.Type}
		z.sets[at] = append(z.sets[at], r)
	}
	for _, r := range records {
		z.set(set{h.Owner(r.Name), r.Type})
	}
}

// depends says whether the record may be out.
func depends(r *spec.Record) bool {
	return r.HealthCheck != "" || r.Alias != nil && r.Alias.Accelerator == ""
}

// instead is what is answered where all records of a set are out.
var instead = map[string]string{
	"":                      "it is answered as if all were in",
	spec.AsIfAllWereHealthy: "it is answered as if all were in",
	spec.Nothing:            "its answer is empty",
	spec.LastGood:           "it is answered as by the last that was in",
}

// set makes the things of a set, after those of the sets that its aliases lead to.
func (z *zone) set(at set) int32 {
	if i, ok := z.made[at]; ok {
		return i // an alias that leads back to itself, which no spec should have, rests on nothing
	}
	z.made[at] = none
	records := z.sets[at]
	if !slices.ContainsFunc(records, depends) {
		return none
	}
	var rests []int32
	always := 0 // records that are never out
	for _, r := range records {
		if !depends(r) {
			always++
			continue
		}
		rests = append(rests, z.record(at, r))
	}
	alone := len(records) == 1 && records[0].Simple()
	z.made[at] = z.put(thing{kind: Route, subject: z.subject(at), resource: fmt.Sprint(always, ids(records)),
		look: func(m *moment) status {
			st := status{n: always, of: len(records), alive: always > 0}
			for _, i := range rests {
				r := m.of(i)
				st.alive = st.alive || r.alive
				if r.up {
					st.n++
				}
				st.why = r.why
			}
			st.up = st.n > 0
			return st
		},
		say: func(was, is status) string {
			name := at.String()
			switch {
			case was.alive && !is.alive:
				return fmt.Sprintf("record %s cannot be answered (SERVFAIL): %s", name, is.why)
			case is.alive && !was.alive:
				return fmt.Sprintf("record %s can be answered", name)
			case alone:
				return "" // its health is not looked at
			case was.up && !is.up:
				return fmt.Sprintf("record %s: all %d are out, so %s", name, is.of, instead[records[0].OnAllUnhealthy])
			case is.up && !was.up:
				return fmt.Sprintf("record %s: %d of %d are in", name, is.n, is.of)
			}
			return ""
		},
	}, rests...)
	return z.made[at]
}

// record makes the thing of one record: up while it may be chosen.
func (z *zone) record(at set, r *spec.Record) int32 {
	check, to := int32(none), int32(none)
	alias := r.Alias
	if i, ok := z.checks[r.HealthCheck]; ok && r.HealthCheck != "" {
		check = i
	}
	target := set{}
	switch {
	case alias == nil:
	case alias.LoadBalancer != "":
		if i, ok := z.balancers[alias.LoadBalancer]; ok {
			to = i
		}
	case alias.Record != "":
		target = set{z.hosted.Owner(alias.Record), r.Type}
		to = z.set(target)
	}
	var rests []int32
	for _, i := range []int32{check, to} {
		if i != none {
			rests = append(rests, i)
		}
	}
	i := z.put(thing{kind: Route, subject: z.subject(at) + "/" + r.SetIdentifier, resource: said(r),
		look: func(m *moment) status {
			st := status{up: true, alive: true}
			switch {
			case alias == nil:
			case alias.Distribution != "":
				if m.count(); m.edges == 0 {
					st = status{why: "no node takes viewers"}
				}
			case to == none:
			case alias.LoadBalancer != "":
				if lb := m.of(to); !lb.alive {
					st = status{why: lb.why}
				} else if alias.EvaluateTargetHealth && !lb.up {
					st.up, st.why = false, "load balancer "+alias.LoadBalancer+" is out"
				}
			default:
				of := m.of(to)
				if st.alive = of.alive; !of.alive {
					st.why = of.why
				}
				if alias.EvaluateTargetHealth && !of.up {
					st.up, st.why = false, "record "+target.String()+" is out"
				}
			}
			if check != none && !m.of(check).up {
				st.up, st.why = false, "health check "+r.HealthCheck+" fails"
			}
			return st
		},
		say: func(was, is status) string {
			if r.Simple() || was.up == is.up {
				return ""
			}
			name, weight := fmt.Sprintf("%v %q", at, r.SetIdentifier), ""
			if r.Weight != nil && *r.Weight > 0 {
				weight = fmt.Sprintf(" (weight %d → 0)", *r.Weight)
				if is.up {
					weight = fmt.Sprintf(" (weight 0 → %d)", *r.Weight)
				}
			}
			if is.up {
				return "record " + name + " is in" + weight
			}
			return "record " + name + " is out" + weight + ": " + is.why
		},
	}, rests...)
	if alias != nil && alias.Distribution != "" {
		z.viewers = append(z.viewers, i)
	}
	return i
}

// said is what of a record decides whether it is out.
func said(r *spec.Record) any {
	var alias spec.Alias
	if r.Alias != nil {
		alias = *r.Alias
	}
	return struct {
		check  string
		alias  spec.Alias
		simple bool
	}{r.HealthCheck, alias, r.Simple()}
}

func ids(records []*spec.Record) (ids []string) {
	for _, r := range records {
		ids = append(ids, r.SetIdentifier)
	}
	return ids
}

// String is the set in words: www.example.com A.
func (s set) String() string { return strings.TrimSuffix(s.owner, ".") + " " + s.kind }

// subject is a set as the subject of events: record/example.com/www/A, with @ for the zone's own name.
func (z *zone) subject(at set) string {
	relative := strings.TrimSuffix(at.owner, z.hosted.Name+".")
	if relative = strings.TrimSuffix(relative, "."); relative == "" {
		relative = "@"
	}
	return "record/" + z.hosted.Name + "/" + relative + "/" + at.kind
}
