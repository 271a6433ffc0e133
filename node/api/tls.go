package api

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/perigee-net/perigee/cluster/identity"
)

// tls is how a client knows the server: by the file of authorities, else by the token, else as any web site.
func (o Options) tls() (*tls.Config, error) {
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read the authorities: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read the authorities: %s has no certificate in PEM", o.CAFile)
		}
		return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Time: o.Now}, nil
	}
	if o.Token == "" {
		return &tls.Config{MinVersion: tls.VersionTLS12, Time: o.Now}, nil
	}
	token, err := identity.ParseAccessToken(o.Token)
	if err != nil {
		return nil, err
	}
	return identity.PinnedTLS(token.Authority, o.Now), nil
}

// explainTLS says what a failed handshake means, "" where it is none.
func explainTLS(err error) string {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &unknown):
		return "has a certificate of an authority that is not known here: an access token tells which one to trust, or a file of authorities"
	case errors.As(err, &host):
		return "has a certificate for other names"
	case errors.As(err, &invalid):
		return "has a certificate that is not good now"
	case errors.As(err, &record):
		return "does not speak TLS"
	}
	return ""
}
