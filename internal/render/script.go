package render

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"

	"stillpoint.io/stillpoint/internal/blueprint"
)

// Script is the two hooks of a blueprint for one object, rendered as far as possible
// before anything runs. A phase that uses the output of an earlier one waits for it; see
// Step.Needs. A Script is not safe for concurrent use.
type Script struct {
	Pre, Post []*Step

	title     string
	secrets   *secrecy
	pre, post *rendering
}

// Script renders both hooks of a blueprint: all phases in order, each with the objects
// and outputs of those before it. A missing action has no steps. A blueprint with neither
// hook is an error, and so is everything that can never be rendered: an unknown
// parameter, function or argument, and a phase that uses a later one.
//
// A blueprint that is not confined reaches a namespace other than the annotated object's
// only if it names that namespace (and an object's name, too) without a template.
// Otherwise an annotation, which a tenant may write, could choose another tenant's pods
// and secrets.
//
// The Masker knows the values of every Secret that was read, even if Script returns an
// error. The error itself shows none.
func (r *Renderer) Script(ctx context.Context, bp *blueprint.Blueprint, p Params) (*Script, Masker, error) {
	s := &Script{title: bp.Title(), secrets: &secrecy{}}
	s.learnObject(p)
	s.pre = r.newRendering(bp, blueprint.Prehook, p, s.secrets)
	s.post = r.newRendering(bp, blueprint.Posthook, p, s.secrets)
	s.post.before = s.pre.phases
	for _, phase := range s.pre.phases {
		s.Pre = append(s.Pre, phase.step)
	}
	for _, phase := range s.post.phases {
		s.Post = append(s.Post, phase.step)
	}
	if err := s.render(ctx, bp); err != nil {
		return nil, s.secrets.masker, s.failed(err)
	}
	return s, s.secrets.masker, nil
}

func (s *Script) failed(err error) error { return fmt.Errorf("%s: %w", s.title, err) }

// learnObject masks the values of an annotated object that is itself a Secret.
func (s *Script) learnObject(p Params) {
	if p.kind() != "Secret" {
		return
	}
	var values [][]byte
	data, _ := p.Object["data"].(map[string]any)
	for _, value := range data {
		if text, ok := value.(string); ok {
			if decoded, err := base64.StdEncoding.DecodeString(text); err == nil {
				values = append(values, decoded)
			}
		}
	}
	s.secrets.learn(values)
}

func (s *Script) render(ctx context.Context, bp *blueprint.Blueprint) error {
	if bp.Actions[blueprint.Prehook] == nil && bp.Actions[blueprint.Posthook] == nil {
		return fmt.Errorf("neither %s nor %s is among its actions: %s", blueprint.Prehook, blueprint.Posthook, blueprint.List(slices.Collect(maps.Keys(bp.Actions))))
	}
	made := s.pre.action.OutputArtifacts
	s.post.data.Declared = made
	for name := range made {
		s.post.data.ArtifactsIn[name] = &artifactData{}
	}
	for _, run := range []*rendering{s.pre, s.post} {
		for _, name := range run.action.InputArtifactNames {
			if _, ok := run.data.Declared[name]; !ok {
				return fmt.Errorf("action %s: inputArtifactNames: artifact %q does not exist; a hook's artifacts are the outputArtifacts of %s, which are here: %s",
					run.name, name, blueprint.Prehook, blueprint.List(slices.Collect(maps.Keys(run.data.Declared))))
			}
		}
		if err := run.check(); err != nil {
			return fmt.Errorf("action %s: %w", run.name, err)
		}
	}
	for _, run := range []*rendering{s.pre, s.post} {
		if err := run.named(ctx); err != nil {
			return fmt.Errorf("action %s: %w", run.name, err)
		}
		for i := range run.phases {
			if err := run.render(ctx, i); err != nil {
				return err
			}
		}
		known, _, err := run.artifacts(ctx)
		if err != nil {
			return err
		}
		if run == s.pre {
			s.hand(known)
		}
	}
	return nil
}

// hand passes artifacts of the prehook to the posthook.
func (s *Script) hand(known map[string]blueprint.Artifact) {
	for name, artifact := range known {
		s.post.data.ArtifactsIn[name] = &artifactData{true, artifact}
	}
}

// find returns the action that a step belongs to, and its index there.
func (s *Script) find(step *Step) (*rendering, int) {
	for _, run := range []*rendering{s.pre, s.post} {
		for i, phase := range run.phases {
			if phase.step == step {
				return run, i
			}
		}
	}
	return nil, 0
}

// Done records that a step of Pre or Post has succeeded, and its outputs, for later
// phases of its action.
func (s *Script) Done(step *Step, outputs map[string]any) {
	run, i := s.find(step)
	if run == nil {
		return
	}
	run.phases[i].done = true
	phase := run.phases[i].data
	phase.Ran, phase.Output = true, exact(outputs)
	// A command that was given a secret may have printed it.
	if len(outputs) > 0 {
		s.secrets.secretive = true
	}
}

// Finish renders the outputArtifacts when Pre has ended; they become the posthook's
// .ArtifactsIn. It returns an error if some need an output that never came, and still
// passes on the others.
func (s *Script) Finish(ctx context.Context) error {
	s.secrets.spent = 0
	known, needs, err := s.pre.artifacts(ctx)
	s.hand(known)
	if err != nil {
		return s.failed(err)
	}
	if needs != "" {
		return s.failed(fmt.Errorf("action %s: %s, which never came", blueprint.Prehook, needs))
	}
	return nil
}

// Render renders a step that has Needs. If they are not met yet, the step keeps them;
// that is no error.
func (s *Script) Render(ctx context.Context, step *Step) error {
	run, i := s.find(step)
	if run == nil {
		return s.failed(errors.New("the step does not belong to this script"))
	}
	if step.Needs == "" {
		return nil
	}
	s.secrets.spent = 0
	if err := run.render(ctx, i); err != nil {
		return s.failed(err)
	}
	return nil
}

// Masker knows the values of all Secrets that were read so far.
func (s *Script) Masker() Masker { return s.secrets.masker }
