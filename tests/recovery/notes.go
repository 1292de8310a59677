package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"stillpoint.io/stillpoint/tests/stage"
)

// notes are all that the part in the second cluster knows of the first one.
// They lie beside its data, which goes.
type notes struct {
	Began time.Time `json:"began"`
	Ways  []saved   `json:"ways"`
	// Located is what went through a VolumeSnapshotLocation.
	Located *saved `json:"located"`
}

// saved is what the latest backup of a way must bring back.
type saved struct {
	Way    string `json:"way"`
	Backup string `json:"backup"`
	// Earlier is the backup that the same schedule made before.
	Earlier string            `json:"earlier"`
	Sums    map[string]string `json:"sums"`
	// Lines is how many the ledger had just before the backup, at least.
	Lines int `json:"lines"`
	// Driver and Handle are of the snapshot that the backup keeps; empty where
	// it keeps none.
	Driver string `json:"driver,omitempty"`
	Handle string `json:"handle,omitempty"`
}

func readNotes(file string) (*notes, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the notes: %w", err)
	}
	n := &notes{}
	if err := json.Unmarshal(content, n); err != nil {
		return nil, fmt.Errorf("read the notes %s: %w", file, err)
	}
	return n, nil
}

func (n *notes) write(file string) error { return stage.WriteResult(file, n) }
