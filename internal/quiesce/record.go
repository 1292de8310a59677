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

// record writes down what is owed from now on.
func (s *Session) openRecord(ctx context.Context) error {
	if s.tools.Journal == nil {
		return nil
	}
	record := s.plan.Record
	record.Since = time.Now()
	// Both hooks may take as long as the pre commands are allowed to.
	record.Until = record.Since.Add(2*s.plan.PrepareTimeout + s.plan.QuiesceTimeout + rescueLimit)
	record.Undo = s.undo(s.targets())
	if err := s.tools.Journal.Open(ctx, &record); err != nil {
		return s.masked(err)
	}
	s.record = &record
	return nil
}

// undo is what somebody else would have to do in our place.
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
			u.Call, u.Volumes = &call, s.plan.volumes(call)
			u.Guarded = t.guard != nil && !s.plan.endsPod(t)
		}
		undo = append(undo, u)
	}
	return undo
}

// endClient is a command that ends a held client, whatever has become of those who
// held it. Its process is known by its environment.
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

// byHand tells a person what to run in the place of a target.
func (s *Session) byHand(t *target) string {
	var text string
	switch {
	case t.task != nil:
		text = "do by hand what phase " + t.step.Phase + " would: " + function.Describe(t.task)
	case t.step.Needs != "":
		text = fmt.Sprintf("do by hand what phase %s of %s would: %s", t.step.Phase, blueprint.Posthook, t.step.Func)
	case t.call.Hold != nil:
		text = s.plan.byHand(endClient(t))
	default:
		text = s.plan.byHand(t.call)
	}
	return s.masker().Mask(text)
}

// amend changes what is on record.
func (s *Session) updateRecord(ctx context.Context, targets []*target) error {
	if s.record == nil {
		return nil
	}
	s.record.Undo = s.undo(targets)
	return s.masked(s.tools.Journal.Update(ctx, s.record))
}

// settle takes off the record what is undone. What is not is for others to try,
// from now on. A freeze that somebody else has released was none to its end.
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
		if s.report.Broken != nil { // which is how it was noticed
			err = fmt.Errorf("%w; %w", err, s.report.Broken)
		}
		s.report.Broken = err
	case err != nil:
		s.log.Warnf("The record of what %s was owed stays: %v", s.plan.Name, s.masked(err))
	}
}
