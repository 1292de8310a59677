package blueprint

import "context"

// Script is the two hooks of a blueprint for one object, rendered as far as
// can be known before anything is touched.
type Script struct {
	Pre, Post []*Step

	masker Masker
}

// Script renders both hooks.
func (r *Renderer) Script(ctx context.Context, bp *Blueprint, p Params) (*Script, Masker, error) {
	script := &Script{}
	for _, action := range []struct {
		name  string
		steps *[]*Step
	}{{Prehook, &script.Pre}, {Posthook, &script.Post}} {
		steps, masker, err := r.Steps(ctx, bp, action.name, p)
		script.masker = script.masker.Merge(masker)
		if err != nil {
			return nil, script.masker, err
		}
		for i := range steps {
			*action.steps = append(*action.steps, &steps[i])
		}
	}
	return script, script.masker, nil
}

// Done tells that a step has run, and what it gave.
func (s *Script) Done(*Step, map[string]any) {}

// Finish tells that Pre has ended.
func (s *Script) Finish(context.Context) error { return nil }

// Render renders a step that has Needs, where they are met by now.
func (s *Script) Render(context.Context, *Step) error { return nil }

// Masker knows all secrets that were read so far.
func (s *Script) Masker() Masker { return s.masker }
