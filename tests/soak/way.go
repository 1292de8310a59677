package soak

import (
	"fmt"
	"slices"
	"strings"
)

// The volumes of a database. One with a single volume has all on the first.
const (
	dataVolume = "data"
	logVolume  = "log"
)

// way is how a database is backed up, and what it lies on.
type way struct {
	name string
	// claims are its volumes, in the order in which Velero comes to them.
	claims []string
	// quiesce has %s for the database's recipe; "" leaves the database alone.
	quiesce string
	// halved says that it gets half of the backups, since another way has the
	// other half.
	halved bool
	// promised says that Stillpoint takes the snapshots, and stands for them.
	promised bool
}

// backups is how many of n are made in this way.
func (w way) backups(n int) int {
	if w.halved {
		return (n + 1) / 2
	}
	return n
}

// log is the volume that has what the data is held against: its log, or a journal.
func (w way) log() string { return w.claims[max(0, slices.Index(w.claims, logVolume))] }

// ways are all there are. With the first, two volumes are cut in one freeze; with
// the last, one volume needs none. With Velero alone the volumes are cut one
// after the other, with one of its polls between them.
var ways = []way{
	{name: "stillpoint", claims: []string{dataVolume, logVolume}, quiesce: "%s,fsfreeze", promised: true},
	{name: "velero-data-first", claims: []string{dataVolume, logVolume}, halved: true},
	{name: "velero-log-first", claims: []string{logVolume, dataVolume}, halved: true},
	{name: "stillpoint-one-volume", claims: []string{dataVolume}, quiesce: "%s", promised: true},
}

// Ways are the names of all ways.
func Ways() []string {
	var names []string
	for _, w := range ways {
		names = append(names, w.name)
	}
	return names
}

func (o Options) ways() ([]way, error) {
	var chosen []way
	for _, name := range o.Ways {
		i := slices.IndexFunc(ways, func(w way) bool { return w.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no way %q; there are %s", name, strings.Join(Ways(), ", "))
		}
		chosen = append(chosen, ways[i])
	}
	return chosen, nil
}
