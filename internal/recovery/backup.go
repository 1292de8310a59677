package recovery

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"stillpoint.io/stillpoint/internal/journal"
)

const (
	// atBackupLimit is how long a backup waits for the pending undo of earlier backups,
	// atBackupTries how long it tries to complete one entry.
	atBackupLimit = time.Minute
	atBackupTries = 20 * time.Second
	// pollInterval is the time between two reads of entries that another process completes.
	pollInterval = 500 * time.Millisecond
)

// AtBackup completes the pending undo of earlier backups whose process died, and waits for
// at most one minute while another process does so. A longer undo continues during the
// backup. Without AtBackup, a workload that is still scaled down would be taken for one
// that its owner scaled down.
//
// If the journal is empty, AtBackup sends one request. Failures are warnings, because they
// concern an earlier backup.
func (u *Undoer) AtBackup(ctx context.Context, log logrus.FieldLogger) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		u.undoAbandoned(ctx, log)
	}()
	select {
	case <-done:
	case <-u.Clock.After(atBackupLimit):
		log.Warn("Pending undo of an earlier backup still runs: `stillpoint thaw` lists it")
	}
}

// undoAbandoned returns when no other entry can be completed now.
func (u *Undoer) undoAbandoned(ctx context.Context, log logrus.FieldLogger) {
	warned := map[string]bool{}
	for {
		statuses, err := u.Journal.Statuses(ctx)
		if err != nil && !warned[""] {
			warned[""] = true
			log.Warnf("Could not read the whole journal of pending undo operations, which `stillpoint thaw` lists: %v", err)
		}
		var busy atomic.Bool // another process completes an entry
		var wait sync.WaitGroup
		for _, s := range statuses {
			switch {
			case s.HolderGone == "" && !s.Tried.IsZero():
				busy.Store(true)
			case !s.Abandoned(), warned[s.ID]: // its own process still holds it
			case !s.Due(u.Clock.Now()) && !u.vanished(ctx, s.Entry):
				warned[s.ID] = true
				log.Warnf("Pending undo is not due for another try: %s may still be quiesced by backup %s since %s: %s", s.Name, s.Backup, s.Since.UTC().Format(time.RFC3339), s.Failure)
			default:
				wait.Go(func() {
					if errors.Is(u.undoAndLog(ctx, log, s.Entry, s.HolderGone), journal.ErrTaken) {
						busy.Store(true)
					}
				})
			}
		}
		wait.Wait()
		if !busy.Load() || ctx.Err() != nil {
			return
		}
		select {
		case <-ctx.Done():
		case <-u.Clock.After(pollInterval):
		}
	}
}

// vanished reports whether the objects of all undo operations of an entry are gone.
func (u *Undoer) vanished(ctx context.Context, i *journal.Entry) bool {
	return len(i.Undo) > 0 && !slices.ContainsFunc(i.Undo, func(undo journal.Undo) bool {
		return vanished(ctx, u.Kube, i, &undo) == ""
	})
}

// undoAndLog completes one entry and logs the result.
func (u *Undoer) undoAndLog(ctx context.Context, log logrus.FieldLogger, i *journal.Entry, gone string) error {
	undone, err := u.Undo(ctx, i, atBackupTries)
	if undone != nil {
		for _, warning := range undone.Warnings {
			log.Infof("Warning while undoing the quiesce of %s: %s", i.Name, warning)
		}
	}
	switch {
	case errors.Is(err, journal.ErrTaken):
	case err != nil:
		log.Warnf("Could not undo the quiesce of %s by backup %s: %v", i.Name, i.Backup, err)
	case undone.Pending != nil:
		log.Warnf("Pending undo failed: %v", undone.Pending)
	case undone.NothingLeft:
		log.Infof("Dropped the pending undo of %s, which backup %s had quiesced since %s: it is gone", i.Name, i.Backup, i.Since.UTC().Format(time.RFC3339))
	default:
		log.Warnf("Released %s, which backup %s had quiesced since %s: %s", i.Name, i.Backup, i.Since.UTC().Format(time.RFC3339), gone)
	}
	return err
}
