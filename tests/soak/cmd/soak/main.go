// Command soak backs PostgreSQL, MariaDB and Redis up at random moments under
// load, with Stillpoint and with Velero alone, and restores every backup to see
// whether it is whole.
//
//	testbed run -- build/soak --backups 20
//	testbed run -- build/soak --database redis --way stillpoint --seed 7
//
// It prints a table and writes it to build/soak.json. It ends with status 1 when
// a backup by Stillpoint is broken; how many of Velero's are is a result.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"stillpoint.io/stillpoint/tests/soak"
	"stillpoint.io/stillpoint/tests/stage"
)

func main() {
	var (
		o              soak.Options
		names, ways    string
		plugin, result string
	)
	flag.IntVar(&o.Backups, "backups", 20, "`number` of backups of each database: by Stillpoint in each way, and by Velero in both")
	flag.StringVar(&names, "database", strings.Join(soak.Databases(), ","), "`list` of the databases")
	flag.StringVar(&ways, "way", strings.Join(soak.Ways(), ","), "`list` of the ways")
	flag.Uint64Var(&o.Seed, "seed", rand.Uint64(), "`number` that the moments of the backups come from; a random one by default") //nolint:gosec // no secret
	flag.StringVar(&plugin, "plugin", filepath.Join("build", "stillpoint"), "`binary` of the plugin that is installed")
	flag.StringVar(&result, "result", filepath.Join("build", "soak.json"), "`file` for the results")
	flag.Parse()
	o.Databases, o.Ways = strings.Split(names, ","), strings.Split(ways, ",")
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, plugin, result); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1) //nolint:gocritic // the signal handler dies with us
	}
}

func run(ctx context.Context, o soak.Options, plugin, file string) error {
	on, err := stage.Open(ctx, stage.NewTimeline(os.Stderr))
	if err != nil {
		return err
	}
	if err := on.Lock(ctx, "soak"); err != nil {
		return err
	}
	if err := on.InstallPlugin(ctx, plugin); err != nil {
		return err
	}
	on.Say("%d backups each, --seed %d", o.Backups, o.Seed)
	results, err := soak.Run(ctx, on, o)
	fmt.Print(soak.Report(results)) // what there is of them
	err = errors.Join(err, stage.WriteResult(file, results))
	if n := soak.Failed(results); n > 0 {
		err = errors.Join(err, fmt.Errorf("%d backups by Stillpoint are broken", n))
	}
	return err
}
