package quiesce

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
	// atBackupLimit is how long a backup waits for what earlier ones have left
	// quiesced, atBackupTries how long it tries to release it.
	atBackupLimit = time.Minute
	atBackupTries = 20 * time.Second
)

// AtBackup releases what the processes of earlier backups have left quiesced, and
// waits for others that are at it, a minute at the most; what takes longer goes on
// beside the backup. A workload that is still
// scaled down must not be taken for one that its owner has scaled down.
//
// When nothing is quiesced it sends one request. Trouble is a warning: it
// concerns another backup than the one it is logged in.
func (u *Undoer) AtBackup(ctx context.Context, log logrus.FieldLogger) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		u.tidy(ctx, log)
	}()
	select {
	case <-done:
	case <-u.Clock.After(atBackupLimit):
		log.Warn("What an earlier backup has left quiesced is still being released: see `stillpoint thaw`")
	}
}

// tidy returns when nothing is left that could be released now.
func (u *Undoer) tidy(ctx context.Context, log logrus.FieldLogger) {
	told := map[string]bool{}
	for {
		standings, err := u.Journal.Statuses(ctx)
		if err != nil && !told[""] {
			told[""] = true
			log.Warnf("What earlier backups may have left quiesced is not known for certain, and `stillpoint thaw` tells: %v", err)
		}
		var busy atomic.Bool // others are at it
		var wait sync.WaitGroup
		for _, s := range standings {
			switch {
			case s.HolderGone == "" && !s.Tried.IsZero():
				busy.Store(true)
			case !s.Abandoned(), told[s.ID]: // another backup is at work
			case !s.Due(u.Clock.Now()) && !u.vanished(ctx, s.Entry):
				told[s.ID] = true
				log.Warnf("A workload may still be quiesced: %s by backup %s since %s: %s", s.Name, s.Backup, s.Since.UTC().Format(time.RFC3339), s.Failure)
			default:
				wait.Go(func() {
					if errors.Is(u.release(ctx, log, s.Entry, s.HolderGone), journal.ErrTaken) {
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
		case <-u.Clock.After(retryPause):
		}
	}
}

// vanished tells that nothing is left of what an intent is about.
func (u *Undoer) vanished(ctx context.Context, i *journal.Entry) bool {
	return len(i.Undo) > 0 && !slices.ContainsFunc(i.Undo, func(undo journal.Undo) bool {
		return vanished(ctx, u.Kube, i, &undo) == ""
	})
}

// release releases one intent and logs what came of it.
func (u *Undoer) release(ctx context.Context, log logrus.FieldLogger, i *journal.Entry, gone string) error {
	undone, err := u.Undo(ctx, i, atBackupTries)
	if undone != nil {
		for _, warning := range undone.Warnings {
			log.Infof("Releasing %s: %s", i.Name, warning)
		}
	}
	switch {
	case errors.Is(err, journal.ErrTaken):
	case err != nil:
		log.Warnf("Release %s, which backup %s has quiesced: %v", i.Name, i.Backup, err)
	case undone.Left != nil:
		log.Warn(undone.Left)
	case undone.Vanished:
		log.Infof("A quiesced object is gone: %s, which backup %s had quiesced since %s", i.Name, i.Backup, i.Since.UTC().Format(time.RFC3339))
	default:
		log.Warnf("Released %s, which backup %s had quiesced since %s: %s", i.Name, i.Backup, i.Since.UTC().Format(time.RFC3339), gone)
	}
	return err
}
