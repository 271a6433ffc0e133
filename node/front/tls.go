package front

import (
	"cmp"
	"crypto/tls"
)

// tlsConfig is how a door speaks TLS.
func (d *door) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetCertificate:     d.front.config.Certificate,
		GetConfigForClient: d.configFor,
	}
}

// configFor is the TLS that who is behind the door brings; nil: that of all doors. Session tickets are the door's own.
func (d *door) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	own := d.behind.Load().TLSConfig
	if own == nil {
		return nil, nil
	}
	if own.GetConfigForClient != nil {
		theirs, err := own.GetConfigForClient(hello)
		if err != nil {
			return nil, err
		}
		own = cmp.Or(theirs, own)
	}
	own = own.Clone()
	own.NextProtos = []string{"h2", "http/1.1"}
	return own, nil
}
