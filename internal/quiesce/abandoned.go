package quiesce

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"stillpoint.io/stillpoint/internal/intent"
)

const (
	// atBackupLimit is how long a backup waits for what earlier ones have left
	// quiesced, atBackupTries how long it tries to release it.
	atBackupLimit = time.Minute
	atBackupTries = 20 * time.Second
)

// AtBackup releases what the processes of earlier backups have left quiesced, and
// waits for others that are at it, a minute at the most. A workload that is still
// scaled down must not be taken for one that its owner has scaled down.
//
// When nothing is quiesced it sends one request. Trouble is a warning: it
// concerns another backup than the one it is logged in.
func (u *Undoer) AtBackup(ctx context.Context, log logrus.FieldLogger) {
	ctx, cancel := context.WithTimeout(ctx, atBackupLimit)
	defer cancel()
	told := map[string]bool{}
	for {
		intents, err := u.Book.List(ctx)
		if err != nil {
			log.Warnf("What earlier backups may have left quiesced is not known, and `stillpoint thaw` tells: %v", err)
			if len(intents) == 0 {
				return
			}
		}
		var busy atomic.Bool // others are at it
		var wait sync.WaitGroup
		for j := range intents {
			i := &intents[j]
			gone, err := u.Book.Gone(ctx, i)
			switch {
			case err != nil:
				log.Warnf("%s is quiesced by backup %s since %s: %v", i.Name, i.Backup, i.Since.UTC().Format(time.RFC3339), err)
			case gone == "":
				if !i.Tried.IsZero() { // else another backup is at work
					busy.Store(true)
				}
			case !i.Due(u.Clock.Now()):
				if !told[i.ID] {
					log.Warnf("%s may still be quiesced by backup %s since %s: %s", i.Name, i.Backup, i.Since.UTC().Format(time.RFC3339), i.Failure)
				}
				told[i.ID] = true
			default:
				told[i.ID] = true
				wait.Go(func() {
					if errors.Is(u.release(ctx, log, i, gone), intent.ErrTaken) {
						busy.Store(true)
					}
				})
			}
		}
		wait.Wait()
		if !busy.Load() {
			return
		}
		select {
		case <-ctx.Done():
			log.Warn("What an earlier backup has left quiesced is still being released: see `stillpoint thaw`")
			return
		case <-u.Clock.After(retryPause):
		}
	}
}

// release releases one intent and logs what came of it.
func (u *Undoer) release(ctx context.Context, log logrus.FieldLogger, i *intent.Intent, gone string) error {
	undone, err := u.Undo(ctx, i, atBackupTries)
	if undone != nil {
		for _, warning := range undone.Warnings {
			log.Infof("Releasing %s: %s", i.Name, warning)
		}
	}
	switch {
	case errors.Is(err, intent.ErrTaken):
	case err != nil:
		log.Warnf("Release %s, which backup %s has quiesced: %v", i.Name, i.Backup, err)
	case undone.Left != nil:
		log.Warnf("%v", undone.Left)
	default:
		log.Warnf("Released %s, which backup %s had quiesced since %s: %s", i.Name, i.Backup, i.Since.UTC().Format(time.RFC3339), gone)
	}
	return err
}
