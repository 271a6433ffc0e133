package backbone

import (
	"crypto/tls"
	"errors"
	"io"
	"math/big"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/identity"
)

// trust is that of the world's authority, without those revoked at epoch 1.
func (w *world) trust(revoked ...string) identity.Trust {
	t := identity.Trust{Authorities: [][]byte{w.authority.Certificate()}, Revoked: map[string]uint64{}}
	for _, name := range revoked {
		t.Revoked[name] = 1
	}
	return t
}

func visitors(b *Backbone) int {
	b.visiting.Lock()
	defer b.visiting.Unlock()
	return len(b.visitors)
}

// says sends something through a stream to an echo and back.
func says(c duplexConn, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != text {
		return errors.New("came back as " + string(got))
	}
	return nil
}

// epochOf is that of the certificate that the other end showed.
func epochOf(state tls.ConnectionState) uint64 {
	return new(big.Int).Rsh(state.PeerCertificates[0].SerialNumber, 64).Uint64()
}

func TestARevokedPeerIsCutOffAtOnceAndStaysOut(t *testing.T) {
	inWorld(t, func(w *world) {
		// All dial all; fra is who is revoked.
		icn, iad, fra := w.open("icn"), w.open("iad"), w.open("stranger")
		defer icn.Close()
		defer iad.Close()
		defer fra.Close()
		icn.Keep(peers("iad", "stranger"))
		fra.Keep(peers("icn", "iad"))
		w.until(icn, "iad", true)
		w.until(icn, "stranger", true)
		w.until(fra, "icn", true)
		w.until(fra, "iad", true)
		kept := []duplexConn{w.mustDial(icn, "iad", "echo"), w.mustDial(fra, "iad", "echo"), w.mustDial(icn, "icn", "echo")}
		doomed := []duplexConn{w.mustDial(icn, "stranger", "echo"), w.mustDial(fra, "icn", "echo"), w.mustDial(fra, "icn", "echo")}
		begun := time.Now()
		ended := make(chan error, len(doomed))
		for _, c := range doomed {
			go func() {
				_, err := c.Read(make([]byte, 1))
				ended <- err
			}()
		}
		synctest.Wait()
		w.guards["icn"].SetTrust(w.trust("stranger"))
		icn.Check()
		if _, err := icn.Dial(w.Context(), "stranger", Header{Service: "echo"}); !errors.Is(err, ErrDown) {
			w.Errorf("right after Check it was dialled: %v", err)
		}
		for range doomed {
			if err := <-ended; err == nil || err == io.EOF {
				w.Errorf("a stream read %v", err)
			}
		}
		if took := time.Since(begun); took > roundTrip {
			w.Errorf("the streams ended after %v", took)
		}
		if n := icn.Counters()["backbone_peers_refused_total"]; n != 2 {
			w.Errorf("%d connections were cut, want 2", n)
		}
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			if icn.Links().Get()["stranger"].Up || fra.Links().Get()["icn"].Up {
				w.Fatal("a link came up again")
			}
			for i, c := range kept {
				if err := says(c, "still here"); err != nil {
					w.Fatalf("stream %d, which is no matter of it: %v", i, err)
				}
			}
		}
		if l := icn.Links().Get()["stranger"]; !strings.Contains(l.Reason, "revoked") {
			w.Errorf("the link to it is %+v", l)
		}
		if n := visitors(icn); n != 0 {
			w.Errorf("%d visitors are kept", n)
		}
		icn.Check()
		if n := icn.Counters()["backbone_peers_refused_total"]; n != 2 {
			w.Errorf("then %d connections were cut, want 2", n)
		}

		// Admitted anew it is a peer like any other.
		w.guards["stranger"].SetNode(issue(w, w.authority, "stranger", 2, w.now()))
		w.until(icn, "stranger", true)
		w.until(fra, "icn", true)
		icn.Check()
		w.mustDial(icn, "stranger", "echo").Close()
		for _, c := range append(kept, doomed...) {
			c.Close()
		}
	})
}

// The handshake judges by the trust of its moment; what is revoked between that and the connection's being known must not
// slip through.
func TestAPeerThatIsRevokedDuringItsHandshakeIsCutOff(t *testing.T) {
	for _, dials := range []string{"icn", "iad"} {
		t.Run(dials+" dials", func(t *testing.T) {
			inWorld(t, func(w *world) {
				c := w.config("icn", w.authority)
				c.PeerName = func(state tls.ConnectionState) (string, error) {
					w.guards["icn"].SetTrust(w.trust("iad"))
					return identity.PeerName(state)
				}
				icn, iad := w.openWith(c), w.open("iad")
				defer icn.Close()
				defer iad.Close()
				from, to := icn, "iad"
				if dials == "iad" {
					from, to = iad, "icn"
				}
				from.Keep(peers(to))
				for range 50 {
					time.Sleep(100 * time.Millisecond)
					if from.Links().Get()[to].Up {
						w.Fatal("the link is up")
					}
				}
				if n := icn.Counters()["backbone_peers_refused_total"]; n != 1 {
					w.Errorf("%d connections were cut, want 1", n)
				}
				if n := visitors(icn); n != 0 {
					w.Errorf("%d visitors are kept", n)
				}
			})
		})
	}
}

func TestARenewedCertificateIsShownFromTheNextHandshakeAndOldLinksLive(t *testing.T) {
	inWorld(t, func(w *world) {
		configs := map[string]Config{}
		shown := map[string]*atomic.Uint64{} // the epoch that a node's last peer showed it
		for _, name := range []string{"icn", "iad", "stranger"} {
			c, epoch := w.config(name, w.authority), &atomic.Uint64{}
			shown[name] = epoch
			c.PeerName = func(state tls.ConnectionState) (string, error) {
				epoch.Store(epochOf(state))
				return identity.PeerName(state)
			}
			configs[name] = c
		}
		showed := func(name string, want uint64) {
			w.Helper()
			if got := shown[name].Load(); got != want {
				w.Errorf("%s was shown a certificate of epoch %d, want %d", name, got, want)
			}
		}
		icn, iad := w.openWith(configs["icn"]), w.openWith(configs["iad"])
		defer icn.Close()
		defer iad.Close()
		icn.Keep(peers("iad"))
		w.until(icn, "iad", true)
		showed("icn", 1)
		showed("iad", 1)
		old := w.mustDial(icn, "iad", "echo")
		defer old.Close()
		since := icn.Links().Get()["iad"].Since

		const day = 24 * time.Hour
		w.ahead.Store(int64(80 * day))
		w.guards["icn"].SetNode(issue(w, w.authority, "icn", 5, w.now()))
		w.guards["iad"].SetNode(issue(w, w.authority, "iad", 6, w.now()))
		w.ahead.Store(int64(100 * day)) // the first ones have ended
		time.Sleep(time.Minute)
		icn.Check()
		iad.Check()
		if err := says(old, "hello"); err != nil {
			w.Errorf("the stream of before: %v", err)
		}
		fra := w.openWith(configs["stranger"])
		defer fra.Close()
		w.guards["stranger"].SetNode(issue(w, w.authority, "stranger", 7, w.now()))
		fra.Keep(peers("iad"))
		w.until(fra, "iad", true)
		showed("stranger", 6)
		showed("iad", 7)
		if l := icn.Links().Get()["iad"]; !l.Up || l.Since != since {
			w.Errorf("the link of before is %+v", l)
		}
		icn.Keep(nil)
		icn.Keep(peers("iad"))
		w.until(icn, "iad", true)
		showed("icn", 6)
		showed("iad", 5)
	})
}

func TestAnAuthorityIsReplacedUnderLinks(t *testing.T) {
	inWorld(t, func(w *world) {
		next, err := identity.NewAuthority(w.authority.ClusterID(), time.Now())
		if err != nil {
			w.Fatal(err)
		}
		icn, iad := w.pair()
		defer icn.Close()
		defer iad.Close()
		set := func(authorities ...[]byte) {
			for _, name := range []string{"icn", "iad"} {
				w.guards[name].SetTrust(identity.Trust{Authorities: authorities})
			}
			icn.Check()
			iad.Check()
		}
		since := icn.Links().Get()["iad"].Since
		set(w.authority.Certificate(), next.Certificate())
		w.guards["icn"].SetNode(issue(w, next, "icn", 2, w.now()))
		w.guards["iad"].SetNode(issue(w, next, "iad", 3, w.now()))
		time.Sleep(time.Minute)
		if l := icn.Links().Get()["iad"]; !l.Up || l.Since != since {
			w.Errorf("while both are trusted the link is %+v", l)
		}
		set(next.Certificate())
		if l := icn.Links().Get()["iad"]; !l.Up || l.Since != since {
			w.Errorf("when the old one is retired the link is %+v", l)
		}
		w.mustDial(icn, "iad", "echo").Close()
	})
}
