package bed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"

	"stillpoint.io/stillpoint/tests/cluster/loopcsi"
)

// Storage is what a cluster calls its storage. The word is the name of the
// StorageClass and of the VolumeSnapshotClass, and begins that of the driver:
// two clusters with different words share no name.
type Storage string

// StandardStorage is that of the cluster that tests run on.
const StandardStorage Storage = "loop"

var storageForm = regexp.MustCompile(`^[a-z][a-z0-9]{0,30}$`)

// Driver is the name of the CSI driver.
func (s Storage) Driver() string {
	_, domain, _ := strings.Cut(loopcsi.Name, ".")
	return string(s) + "." + domain
}

// storageFile is among the cluster's data: it says how that cluster calls its
// storage, for as long as there is one.
func (b *Bed) storageFile() string { return b.data("storage") }

// Storage is what the bed's cluster calls its storage.
func (b *Bed) Storage() Storage { return b.storage }

func (b *Bed) recordedStorage() (Storage, error) {
	name, err := os.ReadFile(b.storageFile())
	if errors.Is(err, fs.ErrNotExist) {
		return StandardStorage, nil
	}
	if err != nil {
		return "", fmt.Errorf("find out what the cluster calls its storage: %w", err)
	}
	return Storage(name), nil
}

// settle has the cluster call its storage by this word. A cluster that calls it
// otherwise is another one: it goes, but for the object store.
func (b *Bed) settle(ctx context.Context, want Storage) error {
	if !storageForm.MatchString(string(want)) {
		return fmt.Errorf("storage %q: it must be a lower-case word of at most 31 letters and digits", want)
	}
	// Another command may have changed it since we opened the bed.
	have, err := b.recordedStorage()
	if err != nil {
		return err
	}
	there, err := b.wiped(WipeCluster)
	if err != nil {
		return err
	}
	if have != want && len(there) > 0 {
		b.Say("the cluster that is here calls its storage %s: it makes way for one that calls it %s", have, want)
		if err := b.tearDown(ctx); err != nil {
			return fmt.Errorf("make way for another cluster: %w", err)
		}
		if err := b.wipe(WipeCluster); err != nil {
			return err
		}
	}
	if err := b.makeDirs(); err != nil {
		return err
	}
	b.storage = want
	if err := os.WriteFile(b.storageFile(), []byte(want), 0o600); err != nil {
		return fmt.Errorf("note what the cluster calls its storage: %w", err)
	}
	return nil
}
