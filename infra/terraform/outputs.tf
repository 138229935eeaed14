output "buckets" {
  description = "Purpose -> bucket: `dvc remote add --default store s3://NAME`, MLflow's --artifacts-destination."
  value       = { for purpose, bucket in aws_s3_bucket.this : purpose => bucket.bucket }
}

output "database" {
  description = "Address of PostgreSQL, and the secret in which RDS keeps the administrator's password."
  value = {
    address    = aws_db_instance.this.address
    port       = aws_db_instance.this.port
    secret_arn = aws_db_instance.this.master_user_secret[0].secret_arn
  }
}

output "repositories" {
  description = "Image -> repository to push it to."
  value       = { for name, repository in aws_ecr_repository.this : name => repository.repository_url }
}

output "ecs_gpu_pool" {
  description = "Values for the variables of infra/work-pools/ecs-gpu.json."
  value = {
    cluster                    = aws_ecs_cluster.this.name
    capacity_provider_strategy = [{ capacityProvider = aws_ecs_capacity_provider.gpu.name, weight = 1, base = 0 }]
    cloudwatch_logs_options    = { "awslogs-group" = aws_cloudwatch_log_group.runs.name, "awslogs-create-group" = "false" }
    execution_role_arn         = aws_iam_role.this["execution"].arn
    task_role_arn              = aws_iam_role.this["run"].arn
    vpc_id                     = var.vpc_id
    network_configuration = {
      awsvpcConfiguration = {
        subnets        = var.private_subnet_ids
        securityGroups = [aws_security_group.members.id]
        assignPublicIp = "DISABLED"
      }
    }
    secrets = [for name, arn in var.run_secret_arns : { name = name, valueFrom = arn }]
  }
}

output "roles" {
  description = "Roles for processes that Terraform does not start: MLflow's server, and the worker of the ECS pool."
  value       = { for name in ["mlflow", "dispatcher"] : name => aws_iam_role.this[name].arn }
}
