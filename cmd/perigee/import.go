package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo/route53"
	"github.com/perigee-net/perigee/dnsgeo/zonefile"
)

func newImport() *cobra.Command {
	return group("import", "Print as YAML a zone that another name service has", newImportZone(), newImportRoute53())
}

func newImportZone() *cobra.Command {
	var o zonefile.Options
	var include string
	c := &cobra.Command{
		Use:   "zone FILE --name DOMAIN",
		Short: "Print a zone file (RFC 1035) as a HostedZone",
		Example: "  perigee import zone db.example.com --name example.com > example.com.yaml\n" +
			"  dig AXFR example.com @192.0.2.53 | perigee import zone - --name example.com",
		Args: exactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if o.Zone == "" {
				return usagef("--name is missing: the zone's domain name")
			}
			o.Zone = strings.ToLower(strings.TrimSuffix(o.Zone, "."))
			data, shown, err := input(c, args[0], zonefile.MaxBytes)
			if err != nil {
				return err
			}
			o.File = shown
			if include != "" {
				dir, err := os.OpenRoot(include)
				if err != nil {
					return fmt.Errorf("--include-dir: %w", err)
				}
				defer dir.Close()
				o.Include = func(name string) ([]byte, error) {
					f, err := dir.Open(name)
					if err != nil {
						return nil, err
					}
					defer f.Close()
					return io.ReadAll(io.LimitReader(f, zonefile.MaxBytes+1))
				}
			}
			z, notes, err := zonefile.Read(data, o)
			tell(c, "note", notes)
			if err != nil {
				return err
			}
			return printZone(c, z, nil)
		},
	}
	c.Flags().StringVar(&o.Zone, "name", "", "the zone's domain name, which names in the file are relative to at first")
	c.Flags().BoolVar(&o.NameServers, "name-servers", false, "keep the NS records of the zone's own name, as its nameServers")
	c.Flags().StringVar(&include, "include-dir", "", "the directory of the files that $INCLUDE names; without it there is no $INCLUDE")
	return c
}

func newImportRoute53() *cobra.Command {
	var name, before string
	var aliases, checks, collections []string
	c := &cobra.Command{
		Use:   "route53 FILE",
		Short: "Print as a HostedZone what aws route53 list-resource-record-sets prints, or what a change batch makes of one",
		Example: "  aws route53 list-resource-record-sets --hosted-zone-id Z… > list.json\n" +
			"  perigee import route53 list.json --alias d111111abcdef8.cloudfront.net=distribution/site > example.com.yaml\n" +
			"  perigee import route53 batch.json --zone example.com.yaml",
		Args: exactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			names := route53.Names{Aliases: map[string]spec.Alias{}}
			for _, text := range aliases {
				from, to, ok := strings.Cut(text, "=")
				alias, known := aliasOf(to)
				if !ok || from == "" || !known {
					return usagef("--alias %s: want DNSNAME=KIND/NAME, KIND one of distribution, loadBalancer, accelerator and record", text)
				}
				names.Aliases[strings.ToLower(strings.TrimSuffix(from, "."))] = alias
			}
			var err error
			if names.HealthChecks, err = pairs("--health-check", "ID=NAME", checks); err != nil {
				return err
			}
			if names.Collections, err = pairs("--cidr-collection", "ID=NAME", collections); err != nil {
				return err
			}
			var zone *spec.HostedZone
			if before != "" {
				if zone, err = zoneOfFiles(c, []string{before}, name); err != nil {
					return err
				}
			}
			data, shown, err := input(c, args[0], route53.MaxBytes)
			if err != nil {
				return err
			}
			z, err := route53.Read(shown, data, name, zone, names)
			if err != nil {
				return err
			}
			tell(c, "note", z.Notes)
			tell(c, "incomplete", z.Incomplete)
			return printZone(c, z.HostedZone, z.Incomplete)
		},
	}
	f := c.Flags()
	f.StringVar(&name, "name", "", "the zone's domain name, where the list has no SOA")
	f.StringVar(&before, "zone", "", "the zone before a change batch: a file of YAML")
	f.StringArrayVar(&aliases, "alias", nil, "DNSNAME=KIND/NAME: what an alias of AWS leads to here")
	f.StringArrayVar(&checks, "health-check", nil, "ID=NAME: what a health check of AWS is here")
	f.StringArrayVar(&collections, "cidr-collection", nil, "ID=NAME: what a CIDR collection of AWS is here")
	return c
}

// aliasOf is an alias written as KIND/NAME.
func aliasOf(text string) (a spec.Alias, ok bool) {
	kind, name, _ := strings.Cut(text, "/")
	switch strings.ToLower(kind) {
	case "distribution":
		a.Distribution = name
	case "loadbalancer":
		a.LoadBalancer = name
	case "accelerator":
		a.Accelerator = name
	case "record":
		a.Record = name
	default:
		return a, false
	}
	return a, name != ""
}

func pairs(flag, form string, texts []string) (map[string]string, error) {
	m := map[string]string{}
	for _, text := range texts {
		key, value, ok := strings.Cut(text, "=")
		if !ok || key == "" || value == "" {
			return nil, usagef("%s %s: want %s", flag, text, form)
		}
		m[key] = value
	}
	return m, nil
}

// input reads a file, or standard input for -, up to a bound that the reader of it tells.
func input(c *cobra.Command, name string, most int64) (data []byte, shown string, err error) {
	in, shown := c.InOrStdin(), "stdin"
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, name, err
		}
		defer f.Close()
		in, shown = f, name
	}
	data, err = io.ReadAll(io.LimitReader(in, most+1))
	return data, shown, err
}

// tell says things on standard error, one a line.
func tell(c *cobra.Command, what string, things []spec.Fault) {
	for _, t := range things {
		fmt.Fprintf(c.ErrOrStderr(), "%s: %s\n", what, t)
	}
}

// printZone prints a zone, what it lacks as comments before it, and fails with exit code 4 if it lacks anything.
func printZone(c *cobra.Command, z *spec.HostedZone, lacks []spec.Fault) error {
	data, err := spec.Resource{Ref: spec.Ref{Kind: "HostedZone", Name: z.Name}, Value: z}.YAML()
	if err != nil {
		return err
	}
	for _, l := range lacks {
		fmt.Fprintf(c.OutOrStdout(), "# incomplete: %s\n", l)
	}
	if _, err := c.OutOrStdout().Write(data); err != nil {
		return err
	}
	if len(lacks) > 0 {
		return exitError{exitIncomplete}
	}
	return nil
}

// zoneOfFiles is the zone of a name in files of YAML; with "" the only one there is.
func zoneOfFiles(c *cobra.Command, files []string, name string) (*spec.HostedZone, error) {
	var found []spec.Document
	for _, file := range files {
		data, shown, err := input(c, file, spec.MaxFileBytes)
		if err != nil {
			return nil, err
		}
		documents, err := spec.Split(shown, data)
		if err != nil {
			return nil, err
		}
		for _, d := range documents {
			if d.Kind == "HostedZone" && (name == "" || d.Name == name) {
				found = append(found, d)
			}
		}
	}
	switch {
	case len(found) == 0 && name == "":
		return nil, fmt.Errorf("%s: no HostedZone", strings.Join(files, ", "))
	case len(found) == 0:
		return nil, fmt.Errorf("%s: no HostedZone %s", strings.Join(files, ", "), name)
	case len(found) > 1 && name == "":
		return nil, errors.New("several HostedZones: --name says which")
	}
	s, err := spec.Build(0, found, spec.Options{Partial: true})
	if err != nil {
		return nil, err
	}
	return s.HostedZones[found[0].Name], nil
}
