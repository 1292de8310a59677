package blueprint

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	tree "text/template/parse"
)

// certain finds mistakes behind the place where a template stopped because it
// asked for what is not known yet: every parameter that it will ask for
// whatever happens is asked for alone. What stands in a branch, or where the
// dot is another one, shows itself when the template is rendered.
func (r *rendering) certain(ctx context.Context, list *tree.ListNode) error {
	for _, node := range list.Nodes {
		var pipe *tree.PipeNode
		switch n := node.(type) {
		case *tree.ActionNode:
			pipe = n.Pipe
		case *tree.IfNode:
			pipe = n.Pipe
		case *tree.WithNode:
			pipe = n.Pipe
		case *tree.RangeNode:
			pipe = n.Pipe
		case *tree.TemplateNode:
			pipe = n.Pipe
		}
		if pipe == nil {
			continue
		}
		if err := r.certainPipe(ctx, pipe); err != nil {
			return err
		}
	}
	return nil
}

func (r *rendering) certainPipe(ctx context.Context, pipe *tree.PipeNode) error {
	for _, command := range pipe.Cmds {
		args := command.Args
		// These stop as soon as they know.
		if name, ok := args[0].(*tree.IdentifierNode); ok && (name.Ident == "and" || name.Ident == "or") {
			args = args[:min(len(args), 2)]
		}
		for _, arg := range args {
			if err := r.certainNode(ctx, arg); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *rendering) certainNode(ctx context.Context, node tree.Node) error {
	var path []string
	switch n := node.(type) {
	case *tree.PipeNode:
		return r.certainPipe(ctx, n)
	case *tree.ChainNode:
		return r.certainNode(ctx, n.Node)
	case *tree.FieldNode:
		path = n.Ident
	case *tree.VariableNode:
		if n.Ident[0] == "$" {
			path = n.Ident[1:]
		}
	}
	if len(path) == 0 {
		return nil
	}
	const artifact, field, key = 1, 2, 3
	if path[0] == "ArtifactsIn" && len(path) > key && path[field] == "KeyValue" {
		made := r.declared[path[artifact]]
		if _, ok := made.KeyValue[path[key]]; !ok && made.KeyValue != nil {
			return refusal(fmt.Sprintf("artifact %s has no key %q; the keys are: %s", path[artifact], path[key], list(slices.Collect(maps.Keys(made.KeyValue)))))
		}
	}
	source := "{{ with ." + strings.Join(path, ".") + " }}{{ end }}"
	parsed, err := newTemplate(ctx, source, "error", textFuncs(), asItIs)
	if err != nil {
		return err
	}
	r.wants = wants{}
	err = parsed.Execute(&limited{ctx: ctx}, r.scope)
	var later pending
	if r.wants.first != "" || errors.As(err, &later) {
		return nil
	}
	return err
}
