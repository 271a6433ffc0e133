package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo/route53"
	"github.com/perigee-net/perigee/dnsgeo/zonefile"
	"github.com/perigee-net/perigee/node/api"
)

func newExport() *cobra.Command {
	return group("export", "Print a HostedZone for another name service", newExportZone(), newExportRoute53())
}

// exporting is what both ways of exporting have: where the zone is, and that for machines the text and what it lacks come together.
type exporting struct {
	addressed
	files  []string
	asJSON bool
}

func (e *exporting) flags(c *cobra.Command) {
	e.addressed.flags(c)
	c.Flags().StringArrayVarP(&e.files, "file", "f", nil, "take the zone from files of YAML, not from a node; - is standard input")
	outputFlag(c, &e.asJSON)
}

// zone is the zone, and the revision that it was agreed at, or 0.
func (e *exporting) zone(c *cobra.Command, name string) (*spec.HostedZone, uint64, error) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if len(e.files) > 0 {
		z, err := zoneOfFiles(c, e.files, name)
		if err != nil {
			return nil, 0, err
		}
		return z, 0, exportable(z)
	}
	res, err := ask(c, e.addressed, func(ctx context.Context, n *api.Client) (api.ResourceList, error) {
		return n.Resources(ctx, api.ResourcesQuery{Kind: "HostedZone", Name: name})
	})
	if err != nil {
		return nil, 0, err
	}
	if len(res.Resources) != 1 {
		return nil, 0, fmt.Errorf("the node tells %d zones of that name", len(res.Resources))
	}
	documents, err := spec.Split(name, []byte(res.Resources[0].YAML))
	if err != nil {
		return nil, 0, err
	}
	s, err := spec.Build(res.Revision, documents, spec.Options{Stored: true, Partial: true})
	if err != nil {
		return nil, 0, err
	}
	if len(s.Unknown) > 0 {
		return nil, 0, fmt.Errorf("%s says what this release does not know: %s", s.Unknown[0].Ref, strings.Join(s.Unknown[0].Fields, ", "))
	}
	z := s.HostedZones[name]
	return z, res.Revision, exportable(z)
}

// exportable refuses a zone whose records the spec has not.
func exportable(z *spec.HostedZone) error {
	if z != nil && z.Secondary() {
		return fmt.Errorf("%s is a copy of its primaries': its records are to be had from them, or by a transfer that its transfer.allow lets in", z.Name)
	}
	return nil
}

// print prints what write writes, and what it lacks; that is exit code 4.
func (e *exporting) print(c *cobra.Command, write func(io.Writer) ([]string, error)) error {
	var b bytes.Buffer
	lacks, err := write(&b)
	if err != nil {
		return err
	}
	if e.asJSON {
		if lacks == nil {
			lacks = []string{}
		}
		err = printJSON(c.OutOrStdout(), map[string]any{"text": b.String(), "incomplete": lacks})
	} else {
		_, err = b.WriteTo(c.OutOrStdout())
		for _, lack := range lacks {
			fmt.Fprintf(c.ErrOrStderr(), "incomplete: %s\n", lack)
		}
	}
	if err == nil && len(lacks) > 0 {
		return exitError{exitIncomplete}
	}
	return err
}

func newExportZone() *cobra.Command {
	var e exporting
	var o zonefile.WriteOptions
	c := &cobra.Command{
		Use:   "zone NAME",
		Short: "Print a HostedZone as a zone file (RFC 1035)",
		Example: "  perigee export zone example.com --name-server ns1.example.net > db.example.com\n" +
			"  perigee export zone example.com -f network.yaml",
		Args: exactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			z, revision, err := e.zone(c, args[0])
			if err != nil {
				return err
			}
			if !c.Flags().Changed("serial") {
				o.Serial = uint32(revision)
			}
			return e.print(c, func(w io.Writer) ([]string, error) { return zonefile.Write(w, z, o) })
		},
	}
	e.flags(c)
	c.Flags().Uint32Var(&o.Serial, "serial", 0, "of the SOA; default the revision")
	c.Flags().StringArrayVar(&o.NameServers, "name-server", nil, "the name servers that the file shall have; default the zone's nameServers")
	return c
}

func newExportRoute53() *cobra.Command {
	var e exporting
	var changes bool
	var aliases, checks, collections []string
	names := route53.AWSNames{Aliases: map[string]route53.AliasTarget{}}
	c := &cobra.Command{
		Use:   "route53 NAME",
		Short: "Print a HostedZone as the JSON of Route 53's API",
		Example: "  perigee export route53 example.com --changes --alias distribution/site=d111111abcdef8.cloudfront.net > batch.json\n" +
			"  aws route53 change-resource-record-sets --hosted-zone-id Z… --change-batch file://batch.json",
		Args: exactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			for _, text := range aliases {
				from, to, ok := strings.Cut(text, "=")
				what, known := aliasOf(from)
				target, id, _ := strings.Cut(to, ",")
				if !ok || !known || what.Record != "" || target == "" {
					return usagef("--alias %s: want KIND/NAME=DNSNAME[,HOSTEDZONEID], KIND one of distribution, loadBalancer and accelerator", text)
				}
				key := "distribution/" + what.Distribution
				if what.LoadBalancer != "" {
					key = "loadBalancer/" + what.LoadBalancer
				} else if what.Accelerator != "" {
					key = "accelerator/" + what.Accelerator
				}
				names.Aliases[key] = route53.AliasTarget{DNSName: target, HostedZoneID: id}
			}
			var err error
			if names.HealthChecks, err = pairs("--health-check", "NAME=ID", checks); err != nil {
				return err
			}
			if names.Collections, err = pairs("--cidr-collection", "NAME=ID", collections); err != nil {
				return err
			}
			z, _, err := e.zone(c, args[0])
			if err != nil {
				return err
			}
			return e.print(c, func(w io.Writer) ([]string, error) { return route53.Write(w, z, changes, names) })
		},
	}
	e.flags(c)
	f := c.Flags()
	f.BoolVar(&changes, "changes", false, "batches of UPSERTs, each no larger than Route 53 takes, in place of a list")
	f.StringArrayVar(&aliases, "alias", nil, "KIND/NAME=DNSNAME[,HOSTEDZONEID]: what an alias leads to in AWS")
	f.StringArrayVar(&checks, "health-check", nil, "NAME=ID: what a health check is in AWS")
	f.StringArrayVar(&collections, "cidr-collection", nil, "NAME=ID: what a CIDR collection is in AWS")
	f.StringVar(&names.HostedZoneID, "hosted-zone-id", "", "of the zone in AWS, for aliases of its own records")
	return c
}
