package quiesce

import (
	"context"
	"errors"
	"fmt"
	"time"

	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/function"
	"stillpoint.io/stillpoint/internal/journal"
	"stillpoint.io/stillpoint/internal/render"
)

// openRecord records the pending undo of the session in the journal.
func (s *Session) openRecord(ctx context.Context) error {
	if s.tools.Journal == nil {
		return nil
	}
	record := s.plan.Record
	record.Since = time.Now()
	// Each hook may take as long as the pre commands are allowed to.
	record.Until = record.Since.Add(2*s.plan.PrepareTimeout + s.plan.QuiesceTimeout + rescueLimit)
	record.Undo = s.undo(s.targets())
	if err := s.tools.Journal.Open(ctx, &record); err != nil {
		return s.masked(err)
	}
	s.record = &record
	return nil
}

// undo returns the pending undo of targets, for a process that takes over.
func (s *Session) undo(targets []*target) []journal.Undo {
	var undo []journal.Undo
	for _, t := range targets {
		u := journal.Undo{Blueprint: t.hook.Blueprint, Phase: t.step.Phase, ByHand: s.byHand(t)}
		switch {
		case t.task != nil:
			u.Task = t.task
		case t.step.Needs != "":
			u.Unknown = fmt.Sprintf("phase %s needs %s, which ended with the process that knew it", t.step.Phase, t.step.Needs)
		default:
			call := t.call
			if call.Hold != nil {
				call = endClient(t)
			}
			u.Call, u.Volumes = &call, s.plan.rescue.volumes(call)
			u.Guarded = t.guard != nil && !s.plan.rescue.endsPod(t.hook, t.call)
		}
		undo = append(undo, u)
	}
	return undo
}

// endClient returns a command that ends a held client, even if its guard is gone. It
// identifies the client by its environment.
func endClient(t *target) render.Call {
	client := ""
	if t.guard != nil {
		client = t.guard.process
	}
	return render.Call{
		Namespace: t.call.Namespace, Pod: t.call.Pod, Container: t.call.Container,
		Command: []string{"sh", "-c", endClientScript, "stillpoint", client, t.call.Env[sessionVariable]},
	}
}

// byHand returns instructions for a user to run a target by hand.
func (s *Session) byHand(t *target) string {
	var text string
	switch {
	case t.task != nil:
		text = "do by hand what phase " + t.step.Phase + " would: " + function.Describe(t.task)
	case t.step.Needs != "":
		text = fmt.Sprintf("do by hand what phase %s of %s would: %s", t.step.Phase, blueprint.Posthook, t.step.Func)
	case t.call.Hold != nil:
		text = s.plan.rescue.byHand(endClient(t))
	default:
		text = s.plan.rescue.byHand(t.call)
	}
	return s.masker().Mask(text)
}

// updateRecord replaces the pending undo of the record.
func (s *Session) updateRecord(ctx context.Context, targets []*target) error {
	if s.record == nil {
		return nil
	}
	s.record.Undo = s.undo(targets)
	return s.masked(s.tools.Journal.Update(ctx, s.record))
}

// closeRecord deletes the record, or, if an undo failed, gives it up so that another
// process can retry. If another process has released the freeze meanwhile, the freeze
// is broken.
func (s *Session) closeRecord(ctx context.Context, stuck error) {
	if s.record == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, ThawLimit)
	defer cancel()
	var err error
	if stuck == nil {
		err = s.tools.Journal.Close(ctx, s.record.ID)
	} else {
		s.record.Holder, s.record.Tried, s.record.Failure = journal.Holder{}, time.Now(), stuck.Error()
		err = s.updateRecord(ctx, s.due())
	}
	switch {
	case errors.Is(err, journal.ErrTaken):
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.report.Broken != nil { // found because the record was taken
			err = fmt.Errorf("%w; %w", err, s.report.Broken)
		}
		s.report.Broken = err
	case err != nil:
		s.log.Warnf("The record of what %s was owed stays: %v", s.plan.Name, s.masked(err))
	}
}
